"""`tinyllama conformance`: does a backend compute what the ops mean?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .arguments import DEVICE_FEATURES, add_kernel_arguments, integer
from .text import option_error

if TYPE_CHECKING:
    from backends.base import Backend
    from backends.conformance.runner import Outcome

HELP = "prove a backend: each of its ops against the float64 formula, laws, and the contract"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("backend", metavar="BACKEND", help="numpy, opencl, cupy, an installed one, or module:Class")
    add(
        "-k",
        dest="expression",
        metavar="WORDS",
        help="only checks with these in their name, as pytest's -k: 'matmul and not K'",
    )
    add("--examples", type=integer(1), default=100, metavar="N", help="cases drawn for each check (default: 100)")
    add(
        "--seed",
        type=integer(0, 2**64 - 1),
        default=None,
        metavar="N",
        help="draw the same cases again (default: others each time)",
    )
    add(
        "--skips-file",
        metavar="FILE",
        help="checks not to run: one name, or op:dtype, a line; globs allowed; # begins a comment",
    )
    add("--xfails-file", metavar="FILE", help="checks that may fail, in the same form")
    add("--support", action="store_true", help="print how each op and dtype is computed, and run nothing")
    add(
        "--sanitize",
        action="store_true",
        help="instead, run OpenCL kernels under Oclgrind: reads and writes out of bounds, data races, uninitialised memory",
    )
    add("--perf", action="store_true", help="also measure GFLOP/s and GB/s of each op, beside numpy's")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--device", metavar="NAME", help="device of the backend: its number, or a part of its name")
    add("--device-features", metavar="KIND", help=DEVICE_FEATURES)
    add_kernel_arguments(add)


def run(args: argparse.Namespace) -> int:
    if find_spec("hypothesis") is None:
        raise option_error('the conformance kit needs hypothesis, which is missing: pip install "tinyllama[test]"')
    from backends.base import Options
    from backends.conformance.report import header, versions
    from backends.registry import get_backend

    sys.path.append("")  # the working directory: where module:Class is looked for last
    if args.sanitize:
        return show_sanitized(args)
    options = Options(device=args.device, device_features=args.device_features, precise=args.precise, repack=args.repack)
    backend = get_backend(args.backend, options)
    found: dict[str, Any] = {"backend": args.backend, "describe": backend.describe(), "versions": versions(backend)}
    if not args.json:
        print("\n".join(header(backend)))
    try:
        if args.support:
            return show_support(args, backend, found)
        failed = show_checks(args, backend, found)
        if args.perf:
            show_speeds(args, backend, found)
        return int(failed)
    finally:  # what was found before Ctrl-C is told too
        if args.json:
            print(json.dumps(found, indent=2))


def show_support(args: argparse.Namespace, backend: Backend, found: dict[str, Any]) -> int:
    from backends.conformance.select import is_meant
    from backends.conformance.support import support

    found["support"] = [
        r for r in support(backend) if args.expression is None or is_meant(f"op-{r['op']}-{r['dtype']}", args.expression)
    ]
    if not args.json:
        print()
        print_table(["op", "dtype", "by"], [list(r.values()) for r in found["support"]])
    return 0


def show_sanitized(args: argparse.Namespace) -> int:
    """Run the kernels on a simulated device. 1 if anything was found, or a kernel was not reached by all cases together."""
    from tqdm import tqdm

    from backends.conformance.sanitize import sanitize
    from backends.conformance.sanitize_jobs import selected_jobs

    todo = selected_jobs(args.expression, args.device_features)
    with tqdm(total=len(todo), desc="cases under Oclgrind", disable=None, leave=False, unit="") as bar:
        result = sanitize(args.backend, todo, bar.update)
    not_reached = [] if args.expression or args.device_features else result.never_launched()
    if args.json:
        print(json.dumps({"backend": args.backend, **result.record(), "never_launched": not_reached}, indent=2))
    else:
        for finding in result.findings:
            print(f"{finding.told(args.backend)}\n")
        if not_reached:
            print(f"never launched: {', '.join(not_reached)}")
        print(result.summary())
    return int(bool(result.findings or not_reached))


def show_checks(args: argparse.Namespace, backend: Backend, found: dict[str, Any]) -> bool:
    """Run them; did any fail?"""
    from tqdm import tqdm

    from backends.conformance.expected import read_patterns
    from backends.conformance.report import HEADINGS, WIDTHS, row, summary
    from backends.conformance.runner import random_seed, run_checks
    from backends.conformance.select import selected
    from backends.conformance.suite import checks

    every = checks()
    skips, xfails = (read_patterns(path, every) if path else {} for path in (args.skips_file, args.xfails_file))
    chosen = selected(every, args.expression)
    found["seed"] = seed = random_seed() if args.seed is None else args.seed
    found["examples"], found["checks"] = args.examples, []
    outcomes: list[Outcome] = []
    if not args.json:
        print(f"seed {seed}, {args.examples} examples for each of {len(chosen)} checks\n\n{line(HEADINGS, WIDTHS)}")
    with tqdm(total=len(chosen), disable=None, leave=False, unit="") as bar:
        for outcome in run_checks(backend, chosen, examples=args.examples, at=seed, skips=skips, xfails=xfails):
            outcomes.append(outcome)
            found["checks"].append(outcome.record())
            if not args.json:
                bar.write(line(row(outcome), WIDTHS), file=sys.stdout)
            bar.update()
    if not args.json:
        for outcome in outcomes:
            if outcome.verdict == "FAILED":
                print(f"\n{outcome.check.name} FAILED\n{outcome.told}")
        print(f"\n{summary(outcomes)}")
    return any(outcome.verdict == "FAILED" for outcome in outcomes)


def show_speeds(args: argparse.Namespace, backend: Backend, found: dict[str, Any]) -> None:
    from tqdm import tqdm

    from backends.conformance.perf import HEADINGS, speeds

    measured = list(tqdm(speeds(backend, args.expression), "measuring", disable=None, leave=False, unit=""))
    found["perf"] = [speed.record() for speed in measured]
    if not args.json:
        print()
        print_table(HEADINGS, [speed.row() for speed in measured])


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [headings, *rows]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(headings))]
    for cells in table:
        print(line(cells, widths))


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
