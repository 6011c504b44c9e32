"""`tinyllama run -i` and `-ins`: the model and a person write one text by turns, as with llama.cpp's main of 2023."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..chat_formats import INSTRUCTION, RESPONSE, WITHOUT_INPUT
from .arguments import integer, note
from .person import ask, at_terminal, editable
from .text import option_error, text_argument, unescape

if TYPE_CHECKING:
    from backends.base import Observer

    from ..context import Context
    from ..interaction import Interaction
    from ..sampling import Sampling

HOW = """Return ends your turn, a backslash before it begins another line; an empty line lets the model go on.
Ctrl-C while the model writes: your turn. Ctrl-D, or Ctrl-C while you write, ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interaction")
    add, kind = group.add_argument, group.add_mutually_exclusive_group().add_argument
    kind("-i", "--interactive", action="store_true", help="the model and you write by turns; each line of stdin is a turn")
    kind("-ins", "--instruct", action="store_true",
         help="the same in Alpaca's form: each line is an instruction, and -p or -f what comes before the first")  # fmt: skip
    add("-r", "--reverse-prompt", action="append", default=[], metavar="TEXT",
        help="a text that ends the model's turn, or without -i the generation; may be given several times")  # fmt: skip
    add("--in-prefix", default=None, metavar="TEXT", help="comes before each line of yours")
    add("--in-suffix", default=None, metavar="TEXT", help="comes after each line of yours")
    add("--keep", type=integer(-1), default=None, metavar="N",
        help="tokens of the prompt that stay when the context is full; -1: all (default: 0, with -ins all)")  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """OptionError: a flag that has a meaning by turns only. With -ins the prompt is Alpaca's first line if none is given."""
    if args.instruct and args.prompt is None and args.file is None:
        args.prompt = WITHOUT_INPUT
    by_turns = args.interactive or args.instruct
    for flag, value in (("--in-prefix", args.in_prefix), ("--in-suffix", args.in_suffix), ("--keep", args.keep)):
        if value is not None and not by_turns:
            raise option_error(f"{flag} has a meaning with -i or -ins only")


def reverse_prompts(args: argparse.Namespace) -> list[str]:
    return [text for text in (_text(text, args) for text in args.reverse_prompt) if text]


def _text(value: str | None, args: argparse.Namespace) -> str:
    """The text of a flag, escapes read as in the prompt."""
    text = text_argument(value or "")
    return unescape(text) if args.escape else text


def interaction_of(args: argparse.Namespace, context: Context, tokens: Sequence[int]) -> Interaction:
    """What these flags ask for; tokens: of the prompt."""
    from ..interaction import Interaction

    reverse, prefix, suffix = reverse_prompts(args), _text(args.in_prefix, args), _text(args.in_suffix, args)
    if args.instruct:
        return Interaction(
            context,
            tokens,
            reverse=[INSTRUCTION, *reverse],
            prefix=f"\n\n{INSTRUCTION}\n\n{prefix}",
            suffix=f"{suffix}\n\n{RESPONSE}\n\n",
            n_keep=-1 if args.keep is None else args.keep,
        )
    at_end = "\n" + (reverse[0] if reverse else "")
    n_keep = args.keep or 0
    return Interaction(context, tokens, reverse=reverse, prefix=prefix, suffix=f"\n{suffix}", at_end=at_end, n_keep=n_keep)


def by_turns(
    args: argparse.Namespace, context: Context, tokens: Sequence[int], sampling: Sampling, observe: Observer | None
) -> int:
    """Turn by turn until stdin ends, then 0. Ctrl-C while the person writes goes to the caller.

    The person begins with -ins, or if the prompt ends with a reverse prompt.
    """
    from ops.errors import TinyLlamaError

    from ..sampling import Sampler
    from .progress import warm_up

    interaction = interaction_of(args, context, tokens)
    seed = Sampler(sampling, context.model.config.n_vocab).seed  # one for all turns, so that it can be told
    settings = {"n_predict": args.n_predict, "sampling": replace(sampling, seed=seed), "ignore_eos": args.ignore_eos}
    warm_up(context)
    note(f"seed: {seed}\n")
    prompt = context.model.detokenize(tokens)
    if at_terminal():
        note(HOW)
        print(prompt, end="", file=sys.stderr, flush=True)
        if args.instruct:
            editable()  # not with -i: there the line begins with text of the model, which readline would write over
    shown = (_text(args.in_prefix, args), _text(args.in_suffix, args)) if args.interactive else ("", "")
    persons_turn = args.instruct or prompt.endswith(tuple(reverse_prompts(args)))
    while True:
        if not persons_turn:
            _show(interaction, interaction.write(**settings, observe=observe), ends_line=args.instruct)
        print(shown[0], end="", flush=True)
        line = _ask_lines("\n> " if args.instruct else "")
        if line is None:
            return 0
        persons_turn = False
        try:
            if line:
                interaction.read(line)
                print(shown[1], end="", flush=True)
        except TinyLlamaError as error:
            if not at_terminal():
                raise  # a script must learn of it
            note(str(error))
            persons_turn = True


def _show(interaction: Interaction, pieces: Generator[str, None, None], *, ends_line: bool) -> None:
    """The model's turn; Ctrl-C ends it."""
    with closing(pieces), suppress(KeyboardInterrupt):
        for piece in pieces:
            print(piece, end="", flush=True)
    if ends_line:
        print(flush=True)
    elif interaction.stop_reason == "interrupted" and at_terminal():
        note()  # leaves the line of the ^C
    if interaction.stop_reason == "length":
        note("(stopped after -n tokens: an empty line lets it go on)")


def _ask_lines(prompt: str) -> str | None:
    """A line, and those after it while they end in a backslash; None at the end of stdin."""
    lines: list[str] = []
    while (line := ask("" if lines else prompt)) is not None:
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            break
    return "\n".join(lines) if lines else None
