"""`tinyllama bench`: tokens a second, and where the time goes."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .arguments import DEFAULT_MODEL, add_batch_size, add_placement_arguments, integer, load_model, note
from .text import option_error

if TYPE_CHECKING:
    from backends.base import Backend

    from ..benchmark import Case
    from ..model import Model
    from ..peak import Peak

HELP = "measure tokens a second as llama-bench does, and by op with --profile"


def integers(low: int, high: float = math.inf) -> Callable[[str], list[int]]:
    """A type for argparse: whole numbers with commas between."""
    return lambda text: [integer(low, high)(part) for part in text.split(",")]


def pair(text: str) -> tuple[int, int]:
    """A type for argparse: two numbers, prompt and generation."""
    numbers = integers(0)(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"'{text}': expected two numbers, such as 512,128")
    return numbers[0], numbers[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", action="append", metavar="MODEL", help=f"may be given several times (default: {DEFAULT_MODEL})")
    add(
        "-p",
        "--n-prompt",
        type=integers(0),
        action="extend",
        metavar="N,..",
        help="prompt lengths; 0: none (default: 512)",
    )
    add(
        "-n",
        "--n-gen",
        type=integers(0),
        action="extend",
        metavar="N,..",
        help="tokens generated; 0: none (default: 128)",
    )
    add(
        "-pg",
        type=pair,
        action="append",
        default=[],
        metavar="P,N",
        help="a prompt of P, then N generated, timed together",
    )
    add("-d", "--n-depth", type=integers(0), action="extend", metavar="N,..", help="tokens read before the clock starts")
    add("-r", "--repetitions", type=integer(1), default=5, metavar="N", help="runs of each test (default: 5)")
    add_batch_size(parser)
    add("-t", "--threads", type=integers(1, 1024), default=[None], metavar="N,..", help="thread counts (default: all cores)")
    add("-o", "--output", choices=("md", "json", "csv"), default="md", help="format of the results (default: md)")
    add("--profile", action="store_true", help="also print, for each test, time, GOP/s and GB/s by op beside the peaks")
    add_placement_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..benchmark import cases

    todo = cases(args.n_prompt or [512], args.n_gen or [128], args.pg, args.n_depth or [0])
    if not todo:
        raise option_error("nothing to measure: -p and -n are both 0")
    results: list[dict[str, Any]] = []
    tables: list[str] = []
    try:
        measure(args, todo, results, tables)
    finally:  # what was measured before Ctrl-C is told too
        if results:
            {"md": print_markdown, "json": print_json, "csv": print_csv}[args.output](results)
        for table in tables:  # beside JSON or CSV, the tables go where notes go
            print(table, file=sys.stdout if args.output == "md" else sys.stderr)
    return 0


def measure(args: argparse.Namespace, todo: list[Case], results: list[dict[str, Any]], tables: list[str]) -> None:
    """Every case with every model and number of threads: records, and the tables of --profile."""
    from tqdm import tqdm

    from ..benchmark import bench
    from ..peak import measure_peak

    runs = [(name, n_threads) for name in args.model or [DEFAULT_MODEL] for n_threads in args.threads]
    with tqdm(total=len(runs) * len(todo) * args.repetitions, disable=None, leave=False) as bar:
        for args.model, args.threads in runs:
            args.ctx_size = max(case.n_tokens for case in todo)  # what a device has to hold
            model = load_model(args)
            peaks = {backend: measure_peak(backend) for backend in model.placement.backends} if args.profile else {}
            for case in todo:
                bar.set_description(case.name)
                result = bench(model, case, repetitions=args.repetitions, n_batch=args.batch_size, progress=bar.update)
                results.append(result)
                for phase in phases(case) if peaks else []:
                    if phase != case:
                        result = bench(model, phase, repetitions=args.repetitions, n_batch=args.batch_size)
                    tables.append(profile_table(model, phase, args.batch_size, peaks, result["avg_ns"] / 1e9))
            del model  # its weights would count against the next one's memory


def print_markdown(results: list[dict[str, Any]]) -> None:
    any_device = any(r["devices"] for r in results)
    rows = [
        {
            "model": r["model_type"],
            "size": f"{r['model_size'] / 2**20:.2f} MiB",
            "params": f"{r['model_n_params'] / 1e6:.2f} M",
            "backend": r["backends"],
            **({"ngl": str(r["n_gpu_layers"])} if any_device else {}),
            "threads": str(r["n_threads"]),
            "test": _name(r),
            "t/s": f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
        }
        for r in results
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    right = {"size", "params", "ngl", "threads", "test", "t/s"}
    print("| " + " | ".join(key.rjust(w) if key in right else key.ljust(w) for key, w in widths.items()) + " |")
    print("| " + " | ".join("-" * (w - 1) + (":" if key in right else "-") for key, w in widths.items()) + " |")
    for row in rows:
        print("| " + " | ".join(v.rjust(widths[k]) if k in right else v.ljust(widths[k]) for k, v in row.items()) + " |")


def print_json(results: list[dict[str, Any]]) -> None:
    print(json.dumps(results, indent=2))


def print_csv(results: list[dict[str, Any]]) -> None:
    """llama-bench's CSV has no samples."""
    fields = [key for key in results[0] if not key.startswith("samples")]
    writer = csv.DictWriter(sys.stdout, fields, extrasaction="ignore", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)


def phases(case: Case) -> list[Case]:
    """A test's prompt and its generation, each a test by itself."""
    from ..benchmark import Case

    both = [Case(case.n_prompt, 0, case.n_depth), Case(0, case.n_gen, case.n_depth + case.n_prompt)]
    return [phase for phase in both if phase.n_prompt or phase.n_gen]


def profile_table(model: Model, case: Case, n_batch: int, peaks: Mapping[Backend, Peak], seconds: float) -> str:
    """The ops of one run of a phase, beside what the machine reaches at best. seconds: what it takes when nobody observes."""
    from ..benchmark import run_case
    from ..profile import Profile

    note(f"profiling {case.name} ...")
    context, profile = model.context(n_ctx=case.n_tokens, n_batch=n_batch), Profile(model, peaks)
    run_case(context, case)
    with profile.counting_launches():
        run_case(context, case)
    run_case(context, case, profile)
    phase, n_tokens = ("prefill", case.n_prompt) if case.n_prompt else ("decode", case.n_gen)
    return profile.table(case.name, phase, n_tokens, seconds)


def _name(result: dict[str, Any]) -> str:
    from ..benchmark import Case

    return Case(result["n_prompt"], result["n_gen"], result["n_depth"]).name
