"""Text from a person: given as an argument, in a file or through a pipe; UTF-8 all of it, with escapes read where asked."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ops.errors import OptionError

DEFAULT_PROMPT = "Once upon a time"


def prompt_from(args: argparse.Namespace) -> str:
    """The text of -p or -f, escapes read. OptionError: empty, unreadable, or not UTF-8."""
    if args.file is not None:
        text = read_text(args.file).removesuffix("\n")
    else:
        text = DEFAULT_PROMPT if args.prompt is None else text_argument(args.prompt)
    if not text:
        raise option_error("the prompt is empty: give some text with -p or -f")
    return unescape(text) if args.escape else text


def option_error(sentence: str) -> OptionError:
    """An OptionError, imported when there is one: numpy comes with it, and --help needs none."""
    from ops.errors import OptionError

    return OptionError(sentence)


def decoded(data: bytes, source: str) -> str:
    """UTF-8 text. OptionError: other bytes, with the place."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise option_error(f"{source} is not valid UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None


def text_argument(text: str) -> str:
    """A text given as an argument, whatever encoding Python takes the command line for."""
    return decoded(os.fsencode(text), "the text")


def read_text(path: Path) -> str:
    """A text file, as it is. OptionError: unreadable, or not UTF-8."""
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise option_error(f"cannot read {path}: {error.strerror}") from error


ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def unescape(text: str) -> str:
    r"""Backslash escapes as llama.cpp reads them: \n \r \t \' \" \\ and \xHH, a byte; any other backslash stays."""

    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes.fromhex(code[1:].decode()) if code[:1] == b"x" else ESCAPES[code]

    data = re.sub(rb"\\(x[0-9A-Fa-f]{2}|[nrt'\"\\])", replace, text.encode())
    return decoded(data, "the text with its \\x escapes read")
