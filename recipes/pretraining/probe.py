"""How much of the letters a linear layer finds in each hidden state of a frozen network.

    python recipes/pretraining/probe.py --models DIR [DIR ...] --train labelled-1h.jsonl --dev dev.jsonl

Prints, for each model and hidden state, of the development utterances under 9 s: CTC's loss a letter, priors divided
out (`ctc_loss(prior_scale=1)`; below 0, and lower is better), and the CER of the best letter of each frame, with
priors as they are in the training transcripts. The layer reads 5 frames and learns from 300 utterances in 12 passes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from wav2vec2_conformer import Wav2Vec2ConformerModel
from wav2vec2_conformer.audio import load_audio
from wav2vec2_conformer.data import TextEncoder, Utterance, build_vocabulary, read_manifest
from wav2vec2_conformer.data.dataset import normalize_waveform
from wav2vec2_conformer.evaluation.error_rates import ErrorRates
from wav2vec2_conformer.modeling.losses import ctc_loss

UTTERANCES, PASSES, TOGETHER, FRAMES, RATE, LONGEST = 300, 12, 8, 5, 3e-3, 9.0

# T frames, D hidden size, L blocks


@torch.inference_mode()
def states_of(model: nn.Module, utterances: list[Utterance]) -> list[list[Tensor]]:
    """The L+1 hidden states (T, D) of each utterance."""
    found = []
    for utterance in utterances:
        waveform = torch.from_numpy(normalize_waveform(load_audio(utterance.audio)))[None]
        with torch.autocast("cpu", torch.bfloat16):
            states = model(waveform, output_hidden_states=True).hidden_states
        found.append([state[0].float().clone() for state in states])
    return found


def loss_of(head: nn.Module, states: list[Tensor], labels: list[list[int]]) -> Tensor:
    """The summed loss of a batch."""
    lengths = torch.tensor([len(state) for state in states])
    padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
    wanted = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in labels], batch_first=True, padding_value=-100)
    logits = head(padded.transpose(1, 2)).transpose(1, 2)
    return ctc_loss(logits, wanted, lengths, blank=0, prior_scale=1.0, zero_infinity=True)


@torch.no_grad()
def greedy(head: nn.Module, heard: list[Tensor], judged: list[Tensor], frequency: Tensor) -> list[list[int]]:
    """The letters of the best token of each frame.

    Training with priors divided out leaves open how common the tokens are; the mean over what was heard says how
    common they became, and `frequency` (V,) how common they should be.
    """
    mean = torch.cat([head(states.t()).softmax(0).t() for states in heard]).mean(0)
    found = []
    for states in judged:
        scores = head(states.t()).log_softmax(0).t() - mean.log() + frequency.log()
        found.append([token for token in scores.argmax(-1).unique_consecutive().tolist() if token])
    return found


def main() -> None:
    """Print a line for each model and hidden state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    options = parser.parse_args()
    train = read_manifest(options.train, require="text")[:UTTERANCES]
    dev = [one for one in read_manifest(options.dev, require="text") if one.duration < LONGEST]
    vocabulary = build_vocabulary([one.text or "" for one in [*train, *dev]])
    encoder = TextEncoder(vocabulary, word_delimiter="|", unknown_token="<unk>")
    labels, dev_labels = ([encoder.encode(one.text or "") for one in lines] for lines in (train, dev))
    letters = {token: letter for letter, token in vocabulary.items()}
    for name in options.models:
        model = Wav2Vec2ConformerModel.from_pretrained(name, dtype=torch.float32).eval()
        heard, judged = states_of(model, train), states_of(model, dev)
        for layer in range(len(heard[0])):
            frames = torch.cat([states[layer] for states in heard])
            frequency = torch.bincount(
                torch.tensor([token for ids in labels for token in ids]), minlength=len(vocabulary)
            ) / len(frames)
            frequency[0] = 1 - frequency.sum()  # the blank has the frames that are left
            mean, deviation = frames.mean(0), frames.std(0) + 1e-4
            own, other = ([(states[layer] - mean) / deviation for states in found] for found in (heard, judged))
            torch.manual_seed(0)
            head = nn.Conv1d(frames.shape[1], len(vocabulary), FRAMES, padding=FRAMES // 2)
            nn.init.normal_(head.weight, std=0.01)
            optimizer = torch.optim.Adam(head.parameters(), RATE)
            for number in range(PASSES):
                order = random.Random(number).sample(range(len(own)), len(own))
                for first in range(0, len(order), TOGETHER):
                    batch = order[first : first + TOGETHER]
                    chosen = [labels[index] for index in batch]
                    loss = loss_of(head, [own[index] for index in batch], chosen) / sum(map(len, chosen))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                total = sum(float(loss_of(head, [one], [ids])) for one, ids in zip(other, dev_labels, strict=True))
            errors = ErrorRates()
            for ids, found in zip(dev_labels, greedy(head, own, other, frequency), strict=True):
                errors.add(*("".join(letters[token] for token in one).replace("|", " ") for one in (ids, found)))
            loss_a_letter = total / sum(map(len, dev_labels))
            print(f"{name} state {layer}: loss {loss_a_letter:.3f}, CER {100 * errors.cer:.1f} %", flush=True)


if __name__ == "__main__":
    main()
