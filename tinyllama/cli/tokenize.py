"""`tinyllama tokenize`: the token ids of a text. Flags and output are llama-tokenize's (llama.cpp, tools/tokenize)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import DEFAULT_MODEL
from .text import decoded, option_error, read_text, text_argument, unescape

HELP = "show the tokens of a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", default=DEFAULT_MODEL, metavar="MODEL",
        help="a name (smollm2) or a path; a file with only a vocabulary will do (default: %(default)s)")  # fmt: skip
    add("-p", "--prompt", metavar="TEXT", help="the text")
    add("-f", "--file", type=Path, metavar="FILE", help="a file with the text")
    add("--stdin", action="store_true", help="read the text from standard input")
    add("--ids", action="store_true", help="print only the ids, as [1, 2, 3]")
    add("--no-bos", action="store_true", help="add no tokens before and behind the text, even if the model wants them")
    add("--no-parse-special", action="store_true", help="take <|im_end|> and the like as plain text")
    add("-e", "--escape", action="store_true", default=True, help="read \\n, \\t, \\\\ in the text as escapes (default)")
    add("--no-escape", dest="escape", action="store_false", help="leave backslashes alone")
    add("--show-count", action="store_true", help="print the number of tokens")


def run(args: argparse.Namespace) -> int:
    from tinyllama.formats import open_model_file
    from tinyllama.models import find
    from tinyllama.tokenizer import Tokenizer

    if (args.prompt is not None) + (args.file is not None) + args.stdin != 1:
        raise option_error("give exactly one text: with -p TEXT, -f FILE or --stdin")
    tokenizer = Tokenizer.from_metadata(open_model_file(find(args.model)).metadata)
    text = text_from(args)
    ids = tokenizer.encode(
        unescape(text) if args.escape else text,
        add_bos=False if args.no_bos else None,
        parse_special=not args.no_parse_special,
    )
    if args.ids or not ids:  # of no tokens there is nothing else to show
        print(ids)
    else:
        for id in ids:
            print(f"{id:6d} -> '{tokenizer.piece(id).decode('utf-8', 'replace')}'")
    if args.show_count:
        print(f"Total number of tokens: {len(ids)}")
    return 0


def text_from(args: argparse.Namespace) -> str:
    """The text of -p, -f or --stdin, to the last newline. OptionError: unreadable, or not UTF-8 (with the place)."""
    if args.prompt is not None:
        return text_argument(args.prompt)
    if args.file is not None:
        return read_text(args.file)
    return decoded(sys.stdin.buffer.read(), "standard input")
