"""`tinyllama perplexity`: how surprised a model is by a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

from .arguments import add_model_arguments, integer, load_model, note
from .text import read_text

HELP = "how surprised a model is by a text; windows of n_ctx tokens, of which the second half is scored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("text").add_argument
    add("-f", "--file", type=Path, required=True, metavar="FILE", help="the text, UTF-8")
    add("--chunks", type=integer(1), default=None, metavar="N", help="windows to read (default: all of the text)")
    add_model_arguments(parser, ctx_size=512)


def run(args: argparse.Namespace) -> int:
    from ..evaluation import perplexity
    from ..summary import load_summary
    from .progress import estimate_bar

    text = read_text(args.file)
    model = load_model(args)
    note(load_summary(model))
    began = perf_counter()
    estimates = perplexity(model, text, n_ctx=model.n_ctx, n_windows=args.chunks)
    for estimate in estimate_bar(estimates):
        if not sys.stdout.isatty():  # where the bar tells it
            print(f"[{estimate.n_done}]{estimate.perplexity:.4f}", end=",", flush=True)
    print(f"\nFinal estimate: PPL = {estimate.perplexity:.4f} +/- {estimate.error:.5f}")
    seconds = perf_counter() - began
    note(
        f"{estimate.n_scored} tokens scored in {estimate.n_windows} windows of {model.n_ctx}: {seconds:.1f} s, "
        f"{estimate.n_done * model.n_ctx / seconds:.1f} tokens/s"
    )
    return 0
