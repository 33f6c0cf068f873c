"""Language adapters: what they compute, what switching changes and what it leaves, and files that are refused."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_model import NO_DROPOUT, TINY, enlarge
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2AttnAdapterLayer

from wav2vec2_conformer import Transcriber, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

WIDTH, VOCABULARY = 6, 11
SIZES: dict[str, Any] = {**TINY, **NO_DROPOUT, "vocab_size": VOCABULARY, "adapter_attn_dim": WIDTH}
LANGUAGE_KEYS = ("adapter_layer", "lm_head")


def build(seed: int = 0, **values: Any) -> Wav2Vec2ConformerForCTC:
    torch.manual_seed(seed)
    model = Wav2Vec2ConformerForCTC(Wav2Vec2ConformerConfig(**{**SIZES, **values}))
    enlarge(model)
    return model.eval()


def waveforms(clips: int) -> Tensor:
    return torch.randn(clips, 4000, generator=torch.Generator().manual_seed(5))


def assert_same(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def language_of(model: Wav2Vec2ConformerForCTC) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if any(part in k for part in LANGUAGE_KEYS)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model and two languages, "eng" with its vocabulary and "azj-script_latin" with a larger one."""
    model = build()
    model.save_pretrained(tmp_path)
    model.save_adapter(tmp_path, "eng")
    build(seed=1, vocab_size=VOCABULARY + 4).save_adapter(tmp_path, "azj-script_latin")
    return tmp_path


def test_the_adapter_comes_after_the_last_norm_of_every_block() -> None:
    model, clips = build(), waveforms(2)
    block = model.wav2vec2_conformer.encoder.layers[0]
    seen: list[tuple[Tensor, Tensor]] = []
    block.final_layer_norm.register_forward_hook(lambda _m, _i, output: seen.append((output, output)))
    states = model(clips, output_hidden_states=True).hidden_states
    normed, adapter = seen[0][0], block.adapter_layer
    inner = F.layer_norm(normed, normed.shape[-1:], adapter.norm.weight, adapter.norm.bias)
    expected = normed + adapter.linear_2(F.relu(adapter.linear_1(inner)))
    assert (expected - normed).abs().max() > 0.1
    assert_same(states[1], expected)


def test_the_adapter_is_that_of_wav2vec2() -> None:
    model = build()
    ours = model.wav2vec2_conformer.encoder.layers[1].adapter_layer
    theirs = Wav2Vec2AttnAdapterLayer(model.config)
    theirs.load_state_dict(ours.state_dict())  # the same key names and shapes
    x = torch.randn(2, 5, model.config.hidden_size)
    assert_same(ours(x), x + theirs(x))


def test_no_adapters_without_a_width() -> None:
    model = build(adapter_attn_dim=None)
    assert not any("adapter_layer" in key for key in model.state_dict())
    for call in (model._get_adapters, lambda: model.load_adapter("eng"), lambda: model.save_adapter(".", "eng")):
        with pytest.raises(ValueError, match="adapter_attn_dim"):
            call()
    with pytest.raises(ValueError, match="adapter_attn_dim"):
        Wav2Vec2ConformerForCTC(model.config, target_lang="eng")


def test_new_adapters_change_nothing(tmp_path: Path) -> None:
    plain = build(adapter_attn_dim=None)
    plain.save_pretrained(tmp_path)
    adapted = Wav2Vec2ConformerForCTC.from_pretrained(tmp_path, adapter_attn_dim=WIDTH).eval()
    assert_same(adapted(waveforms(2)).logits, plain(waveforms(2)).logits)
    trained = build()
    trained.init_adapter_layers()
    head = trained.lm_head.weight
    assert head.std() < 3 * trained.config.initializer_range
    assert head.abs().sum() > 0
    trained.lm_head.load_state_dict(plain.lm_head.state_dict())
    network = plain.wav2vec2_conformer.state_dict()
    missing = trained.wav2vec2_conformer.load_state_dict(network, strict=False).missing_keys
    assert missing
    assert all("adapter_layer" in key for key in missing)
    assert_same(trained(waveforms(2)).logits, plain(waveforms(2)).logits)


def test_a_file_holds_the_language_and_nothing_else(folder: Path) -> None:
    keys = set(load_file(folder / "adapter.eng.safetensors"))
    layers = range(TINY["num_hidden_layers"])
    parts = [f"{part}.{kind}" for part in ("norm", "linear_1", "linear_2") for kind in ("weight", "bias")]
    inside = {f"wav2vec2_conformer.encoder.layers.{i}.adapter_layer.{part}" for i in layers for part in parts}
    assert keys == inside | {"lm_head.weight", "lm_head.bias"}


def test_switching_changes_adapter_head_and_vocabulary_only(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    english = model(waveforms(2)).logits
    config = model.config.to_dict()

    model.load_adapter("azj-script_latin")
    assert model.target_lang == "azj-script_latin"
    assert model.config.to_dict() == {**config, "vocab_size": VOCABULARY + 4}
    after = model.state_dict()
    file = load_file(folder / "adapter.azj-script_latin.safetensors")
    assert after.keys() == before.keys()
    for key, value in after.items():
        assert torch.equal(value, file[key] if key in file else before[key]), key
    other = model(waveforms(2)).logits
    assert other.shape == (*english.shape[:2], VOCABULARY + 4)

    model.load_adapter("eng")
    assert model.config.to_dict() == config
    assert torch.equal(model(waveforms(2)).logits, english)


def test_target_lang_when_loading_and_when_building(folder: Path) -> None:
    switched = Wav2Vec2ConformerForCTC.from_pretrained(folder)
    switched.load_adapter("azj-script_latin")
    loaded, info = Wav2Vec2ConformerForCTC.from_pretrained(
        folder, target_lang="azj-script_latin", output_loading_info=True
    )
    assert loaded.target_lang == "azj-script_latin"
    assert not info["missing_keys"]
    assert_same(loaded(waveforms(1)).logits, switched(waveforms(1)).logits)

    config = Wav2Vec2ConformerConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match="name_or_path"):
        Wav2Vec2ConformerForCTC(config, target_lang="azj-script_latin")
    config.name_or_path = str(folder)
    built = Wav2Vec2ConformerForCTC(config, target_lang="azj-script_latin")
    expected = language_of(switched)
    assert language_of(built).keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in language_of(built).items())


def test_force_load(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, target_lang="eng")
    with torch.no_grad():
        model.lm_head.bias.add_(1)
    changed = language_of(model)
    model.load_adapter("eng", force_load=False)
    assert torch.equal(model.lm_head.bias, changed["lm_head.bias"])
    model.load_adapter("eng")
    assert not torch.equal(model.lm_head.bias, changed["lm_head.bias"])


def test_precision_and_frozen_weights_stay(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.load_adapter("azj-script_latin")
    assert {p.dtype for p in model._get_adapters().values()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())


def test_only_a_language_is_trained(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, target_lang="eng")
    model.init_adapter_layers()
    model.freeze_all_but_language()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    labels = torch.tensor([[1, 2], [3, 1]])
    losses = []
    for _ in range(3):
        loss = model(waveforms(2), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(any(part in key for part in LANGUAGE_KEYS) for key in changed)
    assert any("linear_2" in key for key in changed)


def test_pickled_adapters_are_read_without_executing_them(folder: Path, tmp_path: Path) -> None:
    expected = load_file(folder / "adapter.azj-script_latin.safetensors")
    torch.save(expected, folder / "adapter.old.bin")
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, target_lang="old")
    assert all(torch.equal(value, expected[key]) for key, value in language_of(model).items())

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (folder / "adapter.evil.bin").write_bytes(pickle.dumps({"lm_head.weight": Attack()}, protocol=2))
    with pytest.raises(ValueError, match=r"adapter\.evil\.bin: not a language adapter"):
        model.load_adapter("evil")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("language", ["../eng", "a/b", "", ".hidden", "eng\n"])
def test_a_language_is_no_path(folder: Path, language: str) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder)
    with pytest.raises(ValueError, match="a language id has letters"):
        model.load_adapter(language)
    with pytest.raises(ValueError, match="a language id has letters"):
        model.save_adapter(folder, language)


def test_refused_files_change_nothing(folder: Path) -> None:
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, target_lang="eng")
    before, config = language_of(model), model.config.to_dict()
    good = load_file(folder / "adapter.azj-script_latin.safetensors")
    first = "wav2vec2_conformer.encoder.layers.0.adapter_layer.linear_1.weight"
    broken = {
        "lacking": {key: value for key, value in good.items() if key != first},
        "strange": {**good, "lm_head.scale": torch.ones(1)},
        "narrow": {**good, first: torch.zeros(WIDTH - 1, TINY["hidden_size"])},
        "uneven": {**good, "lm_head.bias": torch.zeros(VOCABULARY)},
    }
    for name, tensors in broken.items():
        save_file(tensors, folder / f"adapter.{name}.safetensors")
        with pytest.raises(ValueError, match=rf"adapter\.{name}\.safetensors: not an adapter of this model"):
            model.load_adapter(name)
    (folder / "adapter.cut.safetensors").write_bytes((folder / "adapter.eng.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        model.load_adapter("cut")
    with pytest.raises(ValueError, match="it has azj-script_latin, cut, eng, lacking"):
        model.load_adapter("fra")
    assert model.target_lang == "eng"
    assert model.config.to_dict() == config
    assert all(torch.equal(value, before[key]) for key, value in language_of(model).items())


def test_a_head_without_the_blank_is_refused(folder: Path) -> None:
    build(vocab_size=3, pad_token_id=0).save_adapter(folder, "tiny")
    model = Wav2Vec2ConformerForCTC.from_pretrained(folder, pad_token_id=7)
    with pytest.raises(ValueError, match="too few for the blank, pad_token_id = 7"):
        model.load_adapter("tiny")


def test_saving_needs_a_language(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no language is loaded"):
        build().save_adapter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_transcriber_switches_model_and_tokenizer(tmp_path: Path) -> None:
    alphabets = {"eng": "ABCDEF", "azj-script_latin": "FEDCBAGHIJ"}
    vocabulary = {
        name: {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}
        for name, letters in alphabets.items()
    }
    for seed, (name, tokens) in enumerate(vocabulary.items()):
        model = build(seed=seed, vocab_size=len(tokens))
        model.save_pretrained(tmp_path)
        model.save_adapter(tmp_path, name)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", target_lang="eng")
    Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer).save_pretrained(tmp_path)

    clip = waveforms(1)[0].numpy()
    for name, tokens in vocabulary.items():
        transcriber = Transcriber.from_pretrained(tmp_path, target_lang=name)
        file = load_file(tmp_path / f"adapter.{name}.safetensors")
        assert all(torch.equal(value, file[key]) for key, value in language_of(transcriber.model).items())
        text = transcriber.transcribe(clip, sample_rate=16_000).text
        normalized = torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))[None]
        path = torch.unique_consecutive(transcriber.model(normalized).logits[0].argmax(-1)).tolist()
        letters = "".join(list(tokens)[i] for i in path if i > 3).replace("|", " ")
        assert text == " ".join(letters.split())
        assert set(text) <= {*alphabets[name], " "}
        assert text
    with pytest.raises(ValueError, match=r"no adapter\.fra"):
        Transcriber.from_pretrained(tmp_path, target_lang="fra")
    model.save_adapter(tmp_path, "fra")
    with pytest.raises(ValueError, match="no vocabulary for 'fra'; it has azj-script_latin, eng"):
        Transcriber.from_pretrained(tmp_path, target_lang="fra")


def test_the_guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines of docs/languages.md do what it says."""
    root = Path(__file__).parents[2]
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (root / "docs" / "languages.md").read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(root / "examples")
    names: dict[str, Any] = {"train": lambda model: None}
    for block in blocks:
        exec(compile(block, "docs/languages.md", "exec"), names)
    assert (tmp_path / "my-model" / "adapter.eng.safetensors").is_file()
    assert names["transcript"].text == "ENTER SEVEN FOUR ONE NINE"


def test_clips_stay_independent_of_padding_with_adapters() -> None:
    model, clips = build(), waveforms(2)
    short = clips.shape[1] * 2 // 3
    mask = torch.ones_like(clips, dtype=torch.long)
    mask[1, short:] = 0
    padded = torch.where(mask.bool(), clips, 1e3)
    alone = model(clips[1:, :short]).logits
    assert_same(model(padded, mask).logits[1:, : alone.shape[1]], alone)
