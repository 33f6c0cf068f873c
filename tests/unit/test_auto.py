"""Registration with transformers' Auto classes, and its end: everything is as before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_heads import SIZES
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoProcessor, AutoTokenizer
from transformers import Wav2Vec2ConformerConfig as PeerConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import wav2vec2_conformer
from wav2vec2_conformer import Wav2Vec2ConformerConfig, register_auto_classes, unregister_auto_classes
from wav2vec2_conformer.auto import MODELS
from wav2vec2_conformer.processing import DEFAULT_MODEL

KIND = "wav2vec2-conformer"


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    """No test starts or leaves with our classes registered."""
    assert not registered()
    yield
    unregister_auto_classes()


def registered() -> bool:
    """Whether all is ours (True) or nothing (False)."""
    ours = {AutoConfig.for_model(KIND).__class__ is Wav2Vec2ConformerConfig}
    ours |= {mapping_of(name)[Wav2Vec2ConformerConfig] is model for name, model in MODELS.items()}
    assert len(ours) == 1
    return ours.pop()


def mapping_of(name: str) -> Any:
    return getattr(transformers, name)._model_mapping


@cache
def tables() -> list[Any]:
    """Every table of the Auto classes of models and processors."""
    autos = [name for name in dir(transformers) if name.startswith("AutoModel")]
    found: dict[Any, Any] = {id(mapping_of(name)): mapping_of(name) for name in autos if mapping_of(name) is not None}
    for kind, name in (
        ("feature_extraction", "FEATURE_EXTRACTOR"),
        ("processing", "PROCESSOR"),
        ("tokenization", "TOKENIZER"),
    ):
        found[kind] = getattr(getattr(transformers.models.auto, f"{kind}_auto"), f"{name}_MAPPING")
    return list(found.values())


def everything() -> list[Any]:
    """What every table of the Auto classes knows about this family, and how much it knows in all."""
    state: list[Any] = [CONFIG_MAPPING[KIND], list(CONFIG_MAPPING.keys()), dict(CONFIG_MAPPING._extra_content)]
    for table in tables():
        found = [table.get(config, None) for config in (Wav2Vec2ConformerConfig, PeerConfig)]
        known = [config in table for config in (Wav2Vec2ConformerConfig, PeerConfig)]
        state.append((found, known, len(table), dict(table._extra_content)))
    return state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint of the bare network."""
    torch.manual_seed(0)
    wav2vec2_conformer.Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


# --- while registered --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_auto_classes_build_ours(name: str, folder: Path) -> None:
    auto, ours = getattr(transformers, name), MODELS[name]
    assert type(auto.from_pretrained(folder)).__module__.startswith("transformers.")
    with register_auto_classes():
        assert type(auto.from_pretrained(folder)) is ours
        assert type(auto.from_config(Wav2Vec2ConformerConfig(**SIZES))) is ours
        assert type(auto.from_config(PeerConfig(**SIZES))).__module__.startswith("transformers.")  # theirs stays theirs
    assert type(auto.from_pretrained(folder)).__module__.startswith("transformers.")


def test_every_model_of_the_package_is_reached() -> None:
    bases = {"Wav2Vec2ConformerPreTrainedModel", "Wav2Vec2ConformerForPreTrainingOutput", "Wav2Vec2ConformerConfig"}
    models = {name for name in wav2vec2_conformer.__all__ if name.startswith("Wav2Vec2Conformer")} - bases
    assert models == {model.__name__ for model in MODELS.values()}


def test_the_auto_configuration_is_ours(folder: Path) -> None:
    with register_auto_classes():
        assert type(AutoConfig.from_pretrained(folder)) is Wav2Vec2ConformerConfig
        assert type(AutoConfig.for_model(KIND)) is Wav2Vec2ConformerConfig
        assert AutoConfig.from_pretrained(folder, padding="reference").padding == "reference"
        (folder / "config.json").write_text(json.dumps({"model_type": KIND, "conv_depthwise_kernel_size": 32}))
        with pytest.raises(ValueError, match="must be odd, got 32"):  # so ours, which checks
            AutoConfig.from_pretrained(folder)


def test_processors_stay_what_they_are(tmp_path: Path) -> None:
    """Also for a folder whose files say nothing but the model type."""
    shutil.copy(DEFAULT_MODEL / "vocab.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": KIND}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    (tmp_path / "tokenizer_config.json").write_text("{}")

    def found() -> list[str]:
        autos = (AutoProcessor, AutoFeatureExtractor, AutoTokenizer)
        return [type(auto.from_pretrained(place)).__name__ for place in (tmp_path, DEFAULT_MODEL) for auto in autos]

    before = found()
    assert before == ["Wav2Vec2Processor", "Wav2Vec2FeatureExtractor", "Wav2Vec2CTCTokenizer"] * 2
    with register_auto_classes():
        assert found() == before
    assert found() == before


@pytest.mark.slow
def test_nothing_of_transformers_models_is_imported() -> None:
    """Neither by registering nor by loading a model through an Auto class."""
    code = f"""
import sys
from transformers import AutoModelForCTC
from wav2vec2_conformer import register_auto_classes
register_auto_classes()
assert type(AutoModelForCTC.from_pretrained({str(DEFAULT_MODEL)!r})).__module__ == "wav2vec2_conformer.modeling.ctc"
print([name for name in sys.modules if name.startswith("transformers.models.wav2vec2")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- and afterwards ----------------------------------------------------------------------------------------------


def nested() -> None:
    with register_auto_classes():
        with register_auto_classes():
            assert registered()
        assert registered()


def crossed() -> None:
    """The first lets go while the second still holds on."""
    first, second = register_auto_classes(), register_auto_classes()
    first.undo()
    assert registered()
    first.undo()  # a second time: the other's hold is not touched
    assert registered()
    second.undo()


def repeated() -> None:
    register_auto_classes()
    register_auto_classes()
    assert registered()
    unregister_auto_classes()
    unregister_auto_classes()


def undone_late() -> None:
    handle = register_auto_classes()
    unregister_auto_classes()
    register_auto_classes()
    handle.undo()  # its registration is over already, and this one is not its own
    assert registered()
    unregister_auto_classes()


def failing() -> None:
    with pytest.raises(ZeroDivisionError), register_auto_classes():
        raise ZeroDivisionError


def never() -> None:
    unregister_auto_classes()


@pytest.mark.parametrize("use", [nested, crossed, repeated, undone_late, failing, never])
def test_everything_is_as_before(use: Callable[[], None]) -> None:
    before = everything()
    for _ in range(2):
        use()
        assert not registered()
        assert everything() == before


def test_registering_changes_what_the_tables_say() -> None:
    """The comparison above sees a change where there is one."""
    before = everything()
    with register_auto_classes():
        now = everything()
    assert now[0] is Wav2Vec2ConformerConfig
    assert sum(a != b for a, b in zip(now[3:], before[3:], strict=True)) == len(MODELS)


class Other(wav2vec2_conformer.Wav2Vec2ConformerForCTC):  # type: ignore[misc]
    """Somebody else's class for our configuration."""


def test_what_others_registered_before_comes_back() -> None:
    table = mapping_of("AutoModelForCTC")
    AutoModelForCTC.register(Wav2Vec2ConformerConfig, Other, exist_ok=True)
    try:
        with register_auto_classes():
            assert table[Wav2Vec2ConformerConfig] is wav2vec2_conformer.Wav2Vec2ConformerForCTC
        assert table[Wav2Vec2ConformerConfig] is Other
    finally:
        table._extra_content.pop(Wav2Vec2ConformerConfig)


def test_what_others_register_meanwhile_stays() -> None:
    table = mapping_of("AutoModelForCTC")
    try:
        with register_auto_classes():
            AutoModelForCTC.register(Wav2Vec2ConformerConfig, Other, exist_ok=True)
        assert table[Wav2Vec2ConformerConfig] is Other
    finally:
        table._extra_content.pop(Wav2Vec2ConformerConfig)


def test_transformers_own_module_is_imported_without_a_word_while_ours_are_registered() -> None:
    """Its docstrings want a released model's name, which they look for in the registered configuration."""
    lines = (
        "from wav2vec2_conformer import register_auto_classes",
        "register_auto_classes()",
        "import transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout == ""
