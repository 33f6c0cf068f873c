"""What commands print."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(text: str) -> str:
    """A text in one line, with what no terminal should get written as escapes."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    words = "; ".join(lines).replace(":; ", ": ").replace(".; ", ". ")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)
