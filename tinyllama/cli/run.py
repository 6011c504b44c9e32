"""`tinyllama run`: complete a prompt."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from . import interactive
from .arguments import (
    add_model_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    load_model,
    note,
    sampling_from,
)
from .text import prompt_from

HELP = "complete a prompt; stdout holds the text and nothing else"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser)
    interactive.add_arguments(parser)
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument(
        "--trace", type=Path, default=None, metavar="FILE",
        help="write a line of JSON for each op of the run: shapes, mean, absmax, time, GFLOP/s, GB/s (implies --no-fuse)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from ..summary import load_summary, prompt_summary, timings_summary
    from ..trace import Trace
    from .progress import prompt_bar, warm_up
    from .terminal import INTERRUPTED

    interactive.check(args)
    prompt, sampling = prompt_from(args), sampling_from(args)
    args.fuse = args.fuse and not args.trace
    with ExitStack() as stack:
        trace = stack.enter_context(Trace(args.trace)) if args.trace else None
        model = load_model(args)
        note(load_summary(model))
        tokens = model.tokenize(prompt)
        if args.verbose_prompt:
            note(prompt_summary(model, tokens))
        context = model.context()
        if args.interactive or args.instruct:
            return interactive.by_turns(args, context, tokens, sampling, trace)
        generation = model.generate(
            tokens,
            n_predict=args.n_predict,
            sampling=sampling,
            stop=interactive.reverse_prompts(args),
            ignore_eos=args.ignore_eos,
            context=context,
            observe=trace,
            progress=prompt_bar(len(tokens)),
        )
        warm_up(context)
        note(f"seed: {generation.sampler.seed}\n")
        code = 0
        try:
            for piece in generation:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            code = INTERRUPTED
    note(timings_summary(generation))
    return code
