"""What the README shows is what happens."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from wav2vec2_conformer.cli import build_parser, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
    if line.startswith("wav2vec2-conformer")
]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def shown_after(language: str, start: str) -> str:
    """The output block that follows the first block of a language that starts so."""
    number = next(i for i, (lang, text) in enumerate(BLOCKS) if lang == language and text.startswith(start))
    assert BLOCKS[number + 1][0] == ""
    return BLOCKS[number + 1][1]


def test_it_begins_with_the_two_commands():
    shell = [text.strip() for language, text in BLOCKS if language == "sh"]
    assert shell[:2] == ["python3 dev.py demo", "python3 dev.py test"]
    assert "python3 dev.py test" in (ROOT / ".ci" / "run").read_text()


def test_the_demo_prints_what_it_shows(capsys):
    import sys

    sys.path.insert(0, str(ROOT))
    import dev

    (command,) = dev.COMMANDS["demo"]
    assert command[0] == "wav2vec2-conformer"
    assert main(command[1:]) == 0
    assert capsys.readouterr().out == shown_after("sh", "python3 dev.py demo")


def test_the_python_lines_print_what_they_show():
    (code,) = (text for language, text in BLOCKS if language == "python")
    assert len(code.strip().splitlines()) == 5
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown_after("python", "from wav2vec2_conformer")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "examples/" in command])
def test_commands_on_the_examples_work(command, capsys):
    assert main(shlex.split(command)[1:]) == 0
    assert "ENTER SEVEN FOUR ONE NINE" in capsys.readouterr().out


DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in ("docs", "recipes", "src", "benchmarks") for path in (ROOT / folder).rglob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    inside = [target for target in targets if not target.startswith(("https://", "http://"))]
    assert [target for target in inside if not (document.parent / target).exists()] == []
