"""The examples of transformers' documentation, line for line, on local checkpoints and recordings.

The examples: documentation of transformers 4.34.0 (the seed document of this project), copyright The HuggingFace Team,
Apache-2.0; they stand here unchanged and are adapted when they run.

Three things are adapted, by `adapt`: names of checkpoints become folders, our classes and helpers are imported from
this package, and `load_dataset` is a small stand-in. Values that need the published weights (the transcription, its
loss, the label, the cosine similarity of a trained quantizer) are tested as shape and type. That masked frames come
near their quantized features, above 0.5, needs a pre-trained model: no test here claims it.
"""

from __future__ import annotations

import doctest
import io
import json
import math
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

import speech
import wav2vec2_conformer
from wav2vec2_conformer import Wav2Vec2ConformerConfig

ROOT = Path(__file__).resolve().parents[2]
SEED = ROOT.parent / "shared" / "reference"

CONFIG = """
>>> from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

>>> configuration = Wav2Vec2ConformerConfig()

>>> model = Wav2Vec2ConformerModel(configuration)

>>> configuration = model.config
"""

MODEL = """
>>> from transformers import AutoProcessor, Wav2Vec2ConformerModel
>>> import torch
>>> from datasets import load_dataset

>>> dataset = load_dataset("hf-internal-testing/librispeech_asr_demo", "clean", split="validation")
>>> dataset = dataset.sort("id")
>>> sampling_rate = dataset.features["audio"].sampling_rate

>>> processor = AutoProcessor.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")
>>> model = Wav2Vec2ConformerModel.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")

>>> inputs = processor(dataset[0]["audio"]["array"], sampling_rate=sampling_rate, return_tensors="pt")
>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> last_hidden_states = outputs.last_hidden_state
>>> list(last_hidden_states.shape)
[1, 292, 1024]
"""

CTC = """
>>> from transformers import AutoProcessor, Wav2Vec2ConformerForCTC
>>> from datasets import load_dataset
>>> import torch

>>> dataset = load_dataset("hf-internal-testing/librispeech_asr_demo", "clean", split="validation")
>>> dataset = dataset.sort("id")
>>> sampling_rate = dataset.features["audio"].sampling_rate

>>> processor = AutoProcessor.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")
>>> model = Wav2Vec2ConformerForCTC.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")

>>> inputs = processor(dataset[0]["audio"]["array"], sampling_rate=sampling_rate, return_tensors="pt")
>>> with torch.no_grad():
...     logits = model(**inputs).logits
>>> predicted_ids = torch.argmax(logits, dim=-1)

>>> transcription = processor.batch_decode(predicted_ids)
>>> transcription[0]
'MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL'

>>> inputs["labels"] = processor(text=dataset[0]["text"], return_tensors="pt").input_ids

>>> loss = model(**inputs).loss
>>> round(loss.item(), 2)
64.21
"""

SEQUENCE_CLASSIFICATION = """
>>> from transformers import AutoFeatureExtractor, Wav2Vec2ConformerForSequenceClassification
>>> from datasets import load_dataset
>>> import torch

>>> dataset = load_dataset("hf-internal-testing/librispeech_asr_demo", "clean", split="validation")
>>> dataset = dataset.sort("id")
>>> sampling_rate = dataset.features["audio"].sampling_rate

>>> feature_extractor = AutoFeatureExtractor.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")
>>> model = Wav2Vec2ConformerForSequenceClassification.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")

>>> inputs = feature_extractor(dataset[0]["audio"]["array"], sampling_rate=sampling_rate, return_tensors="pt")

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> predicted_class_ids = torch.argmax(logits, dim=-1).item()
>>> predicted_label = model.config.id2label[predicted_class_ids]

>>> target_label = model.config.id2label[0]
>>> inputs["labels"] = torch.tensor([model.config.label2id[target_label]])
>>> loss = model(**inputs).loss
"""

FRAME_CLASSIFICATION = """
>>> from transformers import AutoFeatureExtractor, Wav2Vec2ConformerForAudioFrameClassification
>>> from datasets import load_dataset
>>> import torch

>>> dataset = load_dataset("hf-internal-testing/librispeech_asr_demo", "clean", split="validation")
>>> dataset = dataset.sort("id")
>>> sampling_rate = dataset.features["audio"].sampling_rate

>>> feature_extractor = AutoFeatureExtractor.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")
>>> model = Wav2Vec2ConformerForAudioFrameClassification.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")

>>> inputs = feature_extractor(dataset[0]["audio"]["array"], return_tensors="pt", sampling_rate=sampling_rate)
>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> probabilities = torch.sigmoid(logits[0])
>>> labels = (probabilities > 0.5).long()
"""  # noqa: E501

XVECTOR = """
>>> from transformers import AutoFeatureExtractor, Wav2Vec2ConformerForXVector
>>> from datasets import load_dataset
>>> import torch

>>> dataset = load_dataset("hf-internal-testing/librispeech_asr_demo", "clean", split="validation")
>>> dataset = dataset.sort("id")
>>> sampling_rate = dataset.features["audio"].sampling_rate

>>> feature_extractor = AutoFeatureExtractor.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")
>>> model = Wav2Vec2ConformerForXVector.from_pretrained("facebook/wav2vec2-conformer-rope-large-960h-ft")

>>> inputs = feature_extractor(
...     [d["array"] for d in dataset[:2]["audio"]], sampling_rate=sampling_rate, return_tensors="pt", padding=True
... )
>>> with torch.no_grad():
...     embeddings = model(**inputs).embeddings

>>> embeddings = torch.nn.functional.normalize(embeddings, dim=-1).cpu()

>>> cosine_sim = torch.nn.CosineSimilarity(dim=-1)
>>> similarity = cosine_sim(embeddings[0], embeddings[1])
>>> threshold = 0.7
>>> if similarity < threshold:
...     print("Speakers are not the same!")
"""

PRETRAINING = """
>>> import torch
>>> from transformers import AutoFeatureExtractor, Wav2Vec2ConformerForPreTraining
>>> from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
...     _compute_mask_indices,
...     _sample_negative_indices,
... )
>>> from datasets import load_dataset

>>> feature_extractor = AutoFeatureExtractor.from_pretrained("facebook/wav2vec2-conformer-rel-pos-large")
>>> model = Wav2Vec2ConformerForPreTraining.from_pretrained("facebook/wav2vec2-conformer-rel-pos-large")

>>> ds = load_dataset("hf-internal-testing/librispeech_asr_dummy", "clean", split="validation")
>>> input_values = feature_extractor(ds[0]["audio"]["array"], return_tensors="pt").input_values

>>> batch_size, raw_sequence_length = input_values.shape
>>> sequence_length = model._get_feat_extract_output_lengths(raw_sequence_length).item()
>>> mask_time_indices = _compute_mask_indices(
...     shape=(batch_size, sequence_length), mask_prob=0.2, mask_length=2
... )
>>> sampled_negative_indices = _sample_negative_indices(
...     features_shape=(batch_size, sequence_length),
...     num_negatives=model.config.num_negatives,
...     mask_time_indices=mask_time_indices,
... )
>>> mask_time_indices = torch.tensor(data=mask_time_indices, device=input_values.device, dtype=torch.long)
>>> sampled_negative_indices = torch.tensor(
...     data=sampled_negative_indices, device=input_values.device, dtype=torch.long
... )

>>> with torch.no_grad():
...     outputs = model(input_values, mask_time_indices=mask_time_indices)

>>> cosine_sim = torch.cosine_similarity(outputs.projected_states, outputs.projected_quantized_states, dim=-1)

>>> cosine_sim[mask_time_indices.to(torch.bool)].mean() > 0.5
tensor(True)

>>> model = model.train()
>>> loss = model(
...     input_values, mask_time_indices=mask_time_indices, sampled_negative_indices=sampled_negative_indices
... ).loss
"""

EXAMPLES = [CONFIG, MODEL, CTC, SEQUENCE_CLASSIFICATION, FRAME_CLASSIFICATION, XVECTOR, PRETRAINING]

# Hidden states as wide as those of the released models, so that the documented shape is met as it stands; the rest is
# narrow.
SMALL: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "intermediate_size": 32,
    "feat_extract_norm": "layer",
    "conv_dim": (16,) * 7,
    "conv_bias": True,
    "num_conv_pos_embeddings": 4,
    "conv_depthwise_kernel_size": 3,
    "layerdrop": 0.0,
    "vocab_size": 31,
    "num_labels": 2,
    "tdnn_dim": (16, 16, 16, 16, 24),
    "xvector_output_dim": 20,
    "num_codevectors_per_group": 12,
    "codevector_dim": 16,
    "proj_codevector_dim": 24,
    "num_negatives": 10,
}
NARROW = {"hidden_size": 64, "num_attention_heads": 4}
LIBRISPEECH = 93_680  # samples of the seed's clip, 1272-128104-0000
TEXT = "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL"


def frames_of_clip(samples: int) -> int:
    """Frames that seven convolutions without padding leave of a clip, by the textbook formula."""
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        samples = (samples - kernel) // stride + 1
    return samples


# --- what is adapted ---------------------------------------------------------------------------------------------


class Recordings:
    """As much of a data set as the examples use."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.features = {"audio": type("Audio", (), {"sampling_rate": 16_000})}

    def sort(self, column: str) -> Recordings:
        return Recordings(sorted(self.rows, key=lambda row: row[column]))

    def __getitem__(self, which: int | slice) -> dict[str, Any]:
        if isinstance(which, slice):
            return {column: [row[column] for row in self.rows[which]] for column in self.rows[0]}
        return self.rows[which]


def recording(samples: int, seed: int) -> Any:
    """A clip of tones of that length."""
    spoken = speech.speak("ABC DEF FED CAB", np.random.default_rng(seed))
    return np.resize(spoken, samples).astype(np.float64)  # float64, as data sets decode


def recordings() -> list[dict[str, Any]]:
    """Two clips, out of order, the first of them as long as the seed's."""
    clips = (("1272-128104-0001", 40_000), ("1272-128104-0000", LIBRISPEECH))
    return [
        {"id": name, "audio": {"array": recording(samples, seed), "sampling_rate": 16_000}, "text": TEXT}
        for seed, (name, samples) in enumerate(clips)
    ]


def adapt(example: str, checkpoint: Path) -> str:
    """The example with our classes, and with a folder for the name of each checkpoint."""
    example = re.sub(r'"facebook/wav2vec2-conformer-[\w-]+"', json.dumps(str(checkpoint)), example)
    module = "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer"
    example = example.replace(f"from {module} import", "from wav2vec2_conformer.modeling import")

    def split(found: re.Match[str]) -> str:
        names = found[1].split(", ")
        ours = [name for name in names if name.startswith("Wav2Vec2Conformer")]
        theirs = [name for name in names if name not in ours]
        imports = [f">>> from wav2vec2_conformer import {', '.join(ours)}"]
        return "\n".join(imports + [f">>> from transformers import {', '.join(theirs)}"] * bool(theirs))

    return re.sub(r">>> from transformers import (.+)", split, example)


class Ran:
    """What an example left: its names, the values of its bare expressions in order, and what it printed."""

    def __init__(self, example: str, checkpoint: Path = ROOT) -> None:
        self.names: dict[str, Any] = {}
        self.values: list[Any] = []
        printed = io.StringIO()
        with redirect_stdout(printed):
            for part in doctest.DocTestParser().get_examples(adapt(example, checkpoint)):
                if part.want:
                    self.values.append(eval(part.source, self.names))
                else:
                    exec(part.source, self.names)
        self.printed = printed.getvalue()

    def __getattr__(self, name: str) -> Any:
        return self.names[name]


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `load_dataset` gives in the examples; a test may put other recordings in."""
    found = recordings()
    module = ModuleType("datasets")
    module.load_dataset = lambda *_, split: Recordings(found)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    np.random.seed(0)
    torch.manual_seed(0)
    return found


def checkpoint(folder: Path, head: str, position: str, **values: Any) -> Path:
    """A random small model with the files of its processor, as a released one has them."""
    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig(**{**SMALL, "position_embeddings_type": position, **values})
    getattr(wav2vec2_conformer, head)(config).save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *map(chr, range(ord("A"), ord("Z") + 1))]
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(return_attention_mask=True), Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    ).save_pretrained(folder)
    return folder


# --- the examples ------------------------------------------------------------------------------------------------


def lines(example: str) -> list[str]:
    """Its lines, without blank ones and prompts without anything (comments were there)."""
    stripped = (line.rstrip() for line in example.splitlines())
    return [line for line in stripped if line not in ("", ">>>")]


def test_the_examples_are_the_seeds() -> None:
    documents = list(SEED.glob("seed-000_*.md"))
    if not documents:
        pytest.skip("the seed document lies outside the repository")
    blocks = re.findall(r"^```\n(.*?)```", documents[0].read_text(), re.MULTILINE | re.DOTALL)
    assert [lines(example) for example in EXAMPLES] == [lines(block) for block in blocks]


def test_configuration() -> None:
    with torch.device("meta"):  # 180 million random weights are not what this is about
        ran = Ran(CONFIG)
    assert isinstance(ran.configuration, Wav2Vec2ConformerConfig)
    assert ran.configuration is ran.model.config
    assert ran.configuration.to_dict() == Wav2Vec2ConformerConfig().to_dict()
    assert len(ran.model.encoder.layers) == 12
    assert ran.model.encoder.layer_norm.weight.shape == (768,)


def test_model(tmp_path: Path) -> None:
    ran = Ran(MODEL, checkpoint(tmp_path, "Wav2Vec2ConformerModel", "rotary"))
    assert ran.values == [[1, 292, 1024]]
    assert frames_of_clip(LIBRISPEECH) == 292
    assert not ran.model.training
    assert ran.last_hidden_states.isfinite().all()


@pytest.mark.parametrize("samples", [LIBRISPEECH, 40_000, 400, 16_000])
@pytest.mark.parametrize("position", ["relative", "rotary"])
def test_model_on_silence(tmp_path: Path, rows: list[dict[str, Any]], samples: int, position: str) -> None:
    """As many frames as the formula says, also where there is nothing to hear."""
    rows[1]["audio"]["array"] = np.zeros(samples)
    ran = Ran(MODEL, checkpoint(tmp_path, "Wav2Vec2ConformerModel", position, **NARROW))
    assert ran.values == [[1, frames_of_clip(samples), 64]]
    assert ran.last_hidden_states.isfinite().all()


def test_ctc(tmp_path: Path) -> None:
    ran = Ran(CTC, checkpoint(tmp_path, "Wav2Vec2ConformerForCTC", "rotary", **NARROW))
    assert ran.logits.shape == (1, 292, 31)
    assert ran.predicted_ids.shape == (1, 292)
    assert len(ran.transcription) == 1
    transcription, loss = ran.values
    assert isinstance(transcription, str)
    assert ran.inputs["labels"].shape == (1, len(TEXT))
    assert ran.loss.shape == ()
    assert math.isfinite(loss)
    assert loss > 0


def test_ctc_of_the_default_model(rows: list[dict[str, Any]]) -> None:
    """The same lines with trained weights: the text is right, and a small loss says so too."""
    waveform, rate = soundfile.read(ROOT / "examples" / "sample.wav")
    assert rate == 16_000
    rows[1] |= {"audio": {"array": waveform}, "text": "ENTER SEVEN FOUR ONE NINE"}
    ran = Ran(CTC, Path(wav2vec2_conformer.__file__).parent / "assets" / "default")
    transcription, loss = ran.values
    assert transcription == "ENTER SEVEN FOUR ONE NINE"
    assert 0 <= loss < 5
    inputs = {**ran.inputs, "labels": ran.inputs["labels"].flip(1)}
    assert ran.model(**inputs).loss > loss + 50  # another text of the same letters


def test_sequence_classification(tmp_path: Path) -> None:
    head = "Wav2Vec2ConformerForSequenceClassification"
    ran = Ran(SEQUENCE_CLASSIFICATION, checkpoint(tmp_path, head, "rotary", **NARROW))
    assert ran.logits.shape == (1, 2)
    assert ran.predicted_label == f"LABEL_{ran.predicted_class_ids}"
    assert ran.target_label == "LABEL_0"
    torch.testing.assert_close(ran.loss, -ran.logits.log_softmax(-1)[0, 0])


def test_audio_frame_classification(tmp_path: Path) -> None:
    head = "Wav2Vec2ConformerForAudioFrameClassification"
    ran = Ran(FRAME_CLASSIFICATION, checkpoint(tmp_path, head, "rotary", **NARROW))
    assert ran.logits.shape == (1, 292, 2)
    assert ran.probabilities.shape == ran.labels.shape == (292, 2)
    assert ((ran.probabilities > 0) & (ran.probabilities < 1)).all()
    assert torch.equal(ran.labels, (ran.logits[0] > 0).long())


@pytest.mark.parametrize("same", [False, True])
def test_xvector(tmp_path: Path, rows: list[dict[str, Any]], same: bool) -> None:
    if same:
        rows[0]["audio"] = rows[1]["audio"]
    ran = Ran(XVECTOR, checkpoint(tmp_path, "Wav2Vec2ConformerForXVector", "rotary", **NARROW))
    assert ran.inputs.input_values.shape == (2, LIBRISPEECH)
    assert ran.embeddings.shape == (2, 20)
    torch.testing.assert_close(ran.embeddings.norm(dim=-1), torch.ones(2))
    assert ran.similarity.shape == ()
    assert -1.0001 < ran.similarity < 1.0001
    assert ran.printed == ("Speakers are not the same!\n" if ran.similarity < 0.7 else "")
    if same:
        assert ran.similarity.item() == pytest.approx(1)


def test_pretraining(tmp_path: Path) -> None:
    ran = Ran(PRETRAINING, checkpoint(tmp_path, "Wav2Vec2ConformerForPreTraining", "relative", **NARROW))
    frames = frames_of_clip(40_000)  # `ds` is not sorted
    assert ran.sequence_length == frames == 124
    assert ran.mask_time_indices.shape == (1, frames)
    assert ran.mask_time_indices.dtype == torch.long
    assert ran.mask_time_indices.sum() > 0.1 * frames
    assert ran.sampled_negative_indices.shape == (1, frames, ran.model.config.num_negatives) == (1, frames, 10)
    assert ran.outputs.projected_states.shape == ran.outputs.projected_quantized_states.shape == (1, frames, 24)
    assert ran.outputs.loss is None  # without negatives
    assert ran.cosine_sim.shape == (1, frames)
    assert (ran.cosine_sim.abs() < 1.0001).all()
    (near,) = ran.values
    assert near.shape == ()
    assert near.dtype == torch.bool  # true of pre-trained weights only

    assert ran.model.training
    assert ran.loss.shape == ()
    assert ran.loss.isfinite()
    assert ran.loss > 0
    ran.loss.backward()
    without = {name for name, p in ran.model.named_parameters() if p.grad is None}
    assert without == set()
    assert all(p.grad.isfinite().all() for p in ran.model.parameters())
    for part in (ran.model.quantizer, ran.model.project_hid, ran.model.project_q, ran.model.wav2vec2_conformer):
        assert max(p.grad.abs().max() for p in part.parameters()) > 0
