"""`docs/api.md` is the whole documented interface of the network, as it is in the code, and each line of it is tested.

Tests are looked up by their names in the source, not run: what they show is theirs (`test_api_behaviour.py` has those
that no other file has).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

import wav2vec2_conformer
from wav2vec2_conformer import Wav2Vec2ConformerConfig, modeling

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SEED = ROOT.parent / "shared" / "reference"
KINDS = "class parameter field inherited argument output property method function".split()
# Names with an underscore that the references' documentation and examples use all the same.
UNDERSCORED = {
    "_get_feat_extract_output_lengths",
    "_get_feature_vector_attention_mask",
    "_get_tdnn_output_lengths",
}


class Row(NamedTuple):
    """A line of a table of `docs/api.md`."""

    kind: str
    name: str  # of methods and functions, their signature
    default: str
    shape: str
    tests: tuple[str, ...]


@cache
def read_tables() -> dict[str, list[Row]]:
    """The rows below each heading."""
    tables: dict[str, list[Row]] = {}
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if line.startswith("## "):
            tables[heading := line[3:]] = []
        elif line.startswith("|") and not line.startswith(("| kind |", "|---")):
            kind, name, default, shape, tests = (cell.strip() for cell in line.strip("|").split("|"))
            tables[heading].append(
                Row(kind, name.strip("`"), default.strip("`"), shape, tuple(re.findall("`(.+?)`", tests)))
            )
    return tables


@cache
def read_legend() -> dict[str, str]:
    """The letters of the shapes and what they count."""
    legend = re.search(r"Shapes: (.+?)\.\n", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert legend is not None
    return dict(part.split(maxsplit=1) for part in legend[1].split(","))


def rows(section: str, *kinds: str) -> list[Row]:
    return [row for row in read_tables()[section] if row.kind in kinds]


def every_row() -> Iterator[tuple[str, Row]]:
    return ((section, row) for section, table in read_tables().items() for row in table)


CLASSES = {name: getattr(modeling, name) for name in modeling.__all__ if name.startswith("Wav2Vec2Conformer")}
MODELS = {name: cls for name, cls in CLASSES.items() if "forward" in vars(cls)}
OUTPUT = "Wav2Vec2ConformerForPreTrainingOutput"
FUNCTIONS = {name: getattr(modeling, name) for name in modeling.__all__ if name not in CLASSES}
each_model = pytest.mark.parametrize("name", MODELS)


# --- the tests that the tables name ------------------------------------------------------------------------------


@cache
def defined(file: str) -> tuple[set[str], set[str]]:
    """The tests of a file, and its string constants, of which ids of parametrized tests are made."""
    tree = ast.parse((TESTS / file).read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return tests, texts


def test_every_row_is_well_formed() -> None:
    assert len(list(every_row())) > 150
    for section, row in every_row():
        assert row.kind in KINDS, (section, row)
        assert row.tests, (section, row.name)
        assert len(set(row.tests)) == len(row.tests), (section, row.name)
        assert set(re.findall("[A-Z]", row.shape)) <= read_legend().keys(), (section, row)
    for section, table in read_tables().items():
        named = [(row.kind, row.name) for row in table]
        assert len(set(named)) == len(named), section


def test_every_named_test_exists() -> None:
    """A name in brackets is an id of a parametrized test, and written out in its file."""
    for section, row in every_row():
        for test in row.tests:
            parts = re.fullmatch(r"([\w/]+\.py)::(test_\w+)(?:\[(\w+)\])?", test)
            assert parts is not None, (section, row.name, test)
            assert (TESTS / parts[1]).is_file(), (section, row.name, test)
            tests, texts = defined(parts[1])
            assert parts[2] in tests, (section, row.name, test)
            assert parts[3] is None or parts[3] in texts, (section, row.name, test)


def test_fields_are_named_with_their_own_test() -> None:
    """A test that runs over fields covers those that it lists, so the tables say which."""
    for section, row in every_row():
        for test in row.tests:
            if re.search(r"test_a_field_acts|test_dropout_at_a_rate|test_kept_for_files|test_conv_positions_are", test):
                assert test.endswith(f"[{row.name}]"), (section, row.name, test)


# --- the tables are the code -------------------------------------------------------------------------------------


def parameters(call: Any) -> list[inspect.Parameter]:
    return [parameter for name, parameter in inspect.signature(call).parameters.items() if name not in ("self", "cls")]


def default_of(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else repr(parameter.default)


def signature(name: str, call: Any) -> str:
    """`name(a, b=1, *, c=None)`."""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters(call)]
    return name + str(inspect.Signature(plain))


def methods(cls: type) -> dict[str, Any]:
    """What a class defines for its users, with what it has from bases that are not public."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is cls or (base.__module__.startswith("wav2vec2_conformer") and base.__name__ not in CLASSES):
            for name, value in vars(base).items():
                if inspect.isroutine(value) or isinstance(value, property):
                    found.setdefault(name, value)
    own = {name: value for name, value in found.items() if not name.startswith("_") or name in UNDERSCORED}
    own.pop("forward", None)
    return own


def test_every_class_and_function_has_its_place() -> None:
    assert set(read_tables()) == {"Wav2Vec2ConformerConfig", *CLASSES, "Functions"}
    public = {name for name in wav2vec2_conformer.__all__ if name.startswith("Wav2Vec2Conformer")}
    assert public == {"Wav2Vec2ConformerConfig", *CLASSES}
    for section in read_tables():
        if section != "Functions":
            assert [row.name for row in rows(section, "class")] == [section]


def test_fields_and_defaults_are_the_configurations() -> None:
    fields = {name: repr(getattr(Wav2Vec2ConformerConfig, name)) for name in Wav2Vec2ConformerConfig.__annotations__}
    assert {row.name: row.default for row in rows("Wav2Vec2ConformerConfig", "field")} == fields
    assert [row.name for row in rows("Wav2Vec2ConformerConfig", "parameter")] == ["**kwargs"]


def test_inherited_is_what_transformers_gives() -> None:
    config = Wav2Vec2ConformerConfig()
    for row in rows("Wav2Vec2ConformerConfig", "inherited"):
        assert row.name not in Wav2Vec2ConformerConfig.__annotations__
        assert repr(getattr(config, row.name)) == row.default, row.name
    for section, row in every_row():
        if row.kind == "inherited" and section != "Wav2Vec2ConformerConfig":
            cls = CLASSES[section]
            name = row.name.removesuffix("()")
            assert callable(getattr(cls, name)), name
            assert not any(name in vars(base) for base in cls.__mro__ if base.__module__.startswith("wav2vec2")), name


@each_model
def test_parameters_and_arguments_are_the_signatures(name: str) -> None:
    for kind, call in (("parameter", MODELS[name].__init__), ("argument", MODELS[name].forward)):
        written = [(row.name, row.default) for row in rows(name, kind)]
        assert written == [(parameter.name, default_of(parameter)) for parameter in parameters(call)]


def output_class(name: str) -> Any:
    """The class that a model's `forward` returns."""
    return get_args(get_type_hints(MODELS[name].forward)["return"])[0]


@each_model
def test_outputs_are_the_fields_of_what_forward_returns(name: str) -> None:
    fields = [field.name for field in dataclasses.fields(output_class(name))]
    assert [row.name for row in rows(name, "output")] == fields


def test_fields_of_our_own_output_class() -> None:
    fields = [(field.name, repr(field.default)) for field in dataclasses.fields(CLASSES[OUTPUT])]
    assert [(row.name, row.default) for row in rows(OUTPUT, "field")] == fields
    shapes = {row.name: row.shape for row in rows("Wav2Vec2ConformerForPreTraining", "output")}
    assert {row.name: row.shape for row in rows(OUTPUT, "field")} == shapes


@pytest.mark.parametrize("section", ["Wav2Vec2ConformerConfig", *CLASSES])
def test_methods_are_those_of_the_class(section: str) -> None:
    cls: Any = getattr(wav2vec2_conformer, section)
    if section == OUTPUT:
        assert rows(section, "method", "property") == []
        return
    found = methods(cls)
    written = {row.name.partition("(")[0]: row for row in rows(section, "method", "property")}
    assert written.keys() == found.keys()
    for name, row in written.items():
        if isinstance(found[name], property):
            assert (row.kind, row.name) == ("property", name)
        else:
            assert (row.kind, row.name) == ("method", signature(name, getattr(cls, name)))


def test_functions_are_those_of_the_package() -> None:
    assert {row.kind for row in read_tables()["Functions"]} == {"function"}
    written = [row.name for row in rows("Functions", "function")]
    assert sorted(written) == sorted(signature(name, function) for name, function in FUNCTIONS.items())


# --- nothing of the seed is missing ------------------------------------------------------------------------------


@cache
def seed_sections() -> dict[str, str]:
    """The seed document's part on each class, with plain underscores."""
    documents = list(SEED.glob("seed-*.md"))
    if not documents:
        pytest.skip("the seed document lies outside the repository")
    text = documents[0].read_text().replace("\\", "")
    parts = re.split(r"^### class [\w.]*?(\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def seed_signature(text: str) -> list[tuple[str, str]]:
    """Names and defaults of a signature as the seed prints it, run together: `( a: T = Noneb = 1**kwargs )`."""
    names: list[tuple[str, str]] = []
    value = r"None|True|False|'[^']*'|\([^)]*\)|[0-9.]+(?:e-?[0-9]+)?"
    kind = r"(?:: (?:[A-Z]\w+|[\w.]+(?:\[(?:[^\[\]]|\[[^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*\])*\])))?"
    name = r"\*\*\w+|config(?=target_lang)|[a-z_]+"  # nothing stands between those two
    item = re.compile(rf"({name}){kind}(?: = ({value}))?")
    rest = text.strip()
    while rest:
        found = item.match(rest)
        assert found is not None, rest
        names.append((found[1], found[2] or ""))
        rest = rest[found.end() :].strip()
    return names


def signatures(section: str) -> list[tuple[list[tuple[str, str]], str]]:
    """Signatures of a section with the class each returns: first that of the class, then that of `forward`."""
    found = re.findall(r"^\( (.*) \)(?: → \[[\w.]*?(\w+)\].*)?$", section, re.MULTILINE)
    return [(seed_signature(inside), returned) for inside, returned in found]


def test_the_seed_is_read_whole() -> None:
    """What follows would prove little if it found little."""
    sections = seed_sections()
    assert sections.keys() == {"Wav2Vec2ConformerConfig", OUTPUT, *MODELS}
    counts = {name: [len(names) for names, _ in signatures(text)] for name, text in sections.items()}
    assert counts.pop("Wav2Vec2ConformerConfig") == [59]
    assert counts.pop(OUTPUT) == [8]
    assert counts.pop("Wav2Vec2ConformerForPreTraining") == [1]  # its `forward` is in the example only
    assert counts.pop("Wav2Vec2ConformerForCTC") == [2, 6]
    assert set(map(tuple, counts.values())) == {(1, 6)}


def test_every_field_of_the_seed_is_in_the_table() -> None:
    ((names, _),) = signatures(seed_sections()["Wav2Vec2ConformerConfig"])
    written = {row.name: row.default for row in rows("Wav2Vec2ConformerConfig", "field", "parameter")}
    assert [name for name, _ in names if name not in written] == []
    assert dict(names) == {name: written[name] for name, _ in names}
    assert written.keys() - dict(names).keys() == {
        "padding",
        "adapter_attn_dim",
        "encoder_layer_norm",
        "feat_projection",
    }


def test_every_field_of_the_seeds_output_is_in_the_table() -> None:
    ((names, _),) = signatures(seed_sections()[OUTPUT])
    written = [row.name for row in rows(OUTPUT, "field")]
    assert written == [*(name for name, _ in names), "statistics"]  # ours comes last
    assert all(default in ("", "None") for _, default in names)


@each_model
def test_every_argument_of_the_seed_is_in_the_table(name: str) -> None:
    """In the seed's order, since callers may give them by position."""
    section = seed_sections()[name]
    (built, _), *forward = signatures(section)
    assert [row.name for row in rows(name, "parameter")] == [argument for argument, _ in built]
    bold = re.findall(r"^-   \*\*(\w+)\*\* ", section, re.MULTILINE)
    assert bold
    assert set(bold) <= {row.name for row in rows(name, "parameter", "argument")}
    for names, returned in forward:
        assert [(row.name, row.default) for row in rows(name, "argument")] == names
        assert returned == output_class(name).__name__


@each_model
def test_every_name_of_the_seeds_examples_is_in_the_table(name: str) -> None:
    """Outputs that it reads, arguments that it gives, and methods and fields of the model that it uses."""
    (example,) = re.findall(r"^```\n(.*?)```", seed_sections()[name], re.MULTILINE | re.DOTALL)
    outputs = set(re.findall(r"(?:outputs|model\([^()]*\)|\n>?\.* ?\))\.(\w+)", example))
    assert outputs
    assert outputs <= {row.name for row in rows(name, "output")}
    arguments = {word for call in re.findall(r"= model\(([^()]*)\)", example) for word in re.findall(r"(\w+)=", call)}
    arguments |= set(re.findall(r"inputs\[\"(\w+)\"\] =", example))
    assert arguments <= {row.name for row in rows(name, "argument")}
    fields = set(re.findall(r"model\.config\.(\w+)", example))
    assert fields <= {row.name for row in rows("Wav2Vec2ConformerConfig", "field", "inherited")}
    used = set(re.findall(rf"(?:model|{name})\.(\w+)\(", example)) - {"train"}
    described = {
        row.name.partition("(")[0]
        for part in (name, "Wav2Vec2ConformerPreTrainedModel")
        for row in rows(part, "method")
    }
    assert used
    assert used <= described
    helpers = set(re.findall(r"^\.\.\.     (_\w+),$", example, re.MULTILINE))
    assert helpers <= {row.name.partition("(")[0] for row in rows("Functions", "function")}
    assert bool(helpers) == (name == "Wav2Vec2ConformerForPreTraining")
