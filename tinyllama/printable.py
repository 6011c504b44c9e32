"""Text from a file, made harmless."""

from __future__ import annotations


def printable(text: str) -> str:
    """All that could steer a terminal or cannot be printed (lone surrogates, of bytes not UTF-8) written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
