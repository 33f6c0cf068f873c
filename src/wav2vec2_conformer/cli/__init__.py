"""The command `wav2vec2-conformer`: parse, call, print."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version

from . import classify, convert, data, diarize, embed, evaluate, export, inspect, train, transcribe, verify
from .messages import one_line

__all__ = ["main"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="wav2vec2-conformer",
        description=(
            "Speech models of the Wav2Vec2-Conformer family: transcribe recordings, classify them, tell speakers "
            "apart, train on your own, bring models in from fairseq and out to transformers, look into them."
        ),
    )
    parser.add_argument("--version", action="version", version=f"wav2vec2-conformer {version('wav2vec2-conformer')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (transcribe, classify, verify, embed, diarize, train, evaluate, data, convert, export, inspect):
        command.add_parser(commands)
    return parser


def option_names(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, str]:
    """The options of the command that was given, by Python's names: {"batch_seconds": "--batch-seconds"}.

    With a preset only those that were given: the others are fields of its file.
    """
    named: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            named |= option_names(action.choices[getattr(options, action.dest)], options)
        elif action.option_strings:
            named[action.dest] = action.option_strings[0]
    given = vars(options)
    return {name: option for name, option in named.items() if name in given or "preset" not in given}


class Messages(logging.Formatter):
    """Messages in which fields are called as the command's options: ``--batch-seconds`` for ``batch_seconds``."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__("%(levelname)s: %(message)s")
        self.options = options

    def format(self, record: logging.LogRecord) -> str:
        """A warning's line."""
        return self.translate(super().format(record))

    def translate(self, text: str) -> str:
        """A text with options in place of fields; what is not in backquotes stays."""
        return re.sub(
            "`(\\w+)`", lambda match: f"`{self.options[match[1]]}`" if match[1] in self.options else match[0], text
        )


def set_up_messages(messages: Messages) -> None:
    """Our warnings go to stderr; the libraries' notes and bars, which would stand between ours, do not."""
    for library in ("TRANSFORMERS", "HF_HUB"):  # read when they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    from transformers.utils import logging as transformers_logging  # imported late: `--help` need not wait for it

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(messages)
    logging.getLogger("wav2vec2_conformer").handlers = [handler]  # one, however often `main` is called


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be valid text
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    options = parser.parse_args(arguments)
    messages = Messages(option_names(parser, options))
    try:
        set_up_messages(messages)
        return int(options.run(options))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        print(f"wav2vec2-conformer: {one_line(messages.translate(str(error)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wav2vec2-conformer: interrupted", file=sys.stderr)
        return 130
