"""The steps from the graph as it is written to the one that runs:  python examples/readable_to_fast.py -t 2

docs/from-readable-to-fast.md walks a layer through them. Here each is measured, with one model, in turns in one process: other
programs on the machine then disturb all alike. Medians are printed.
"""

import argparse
import sys
from statistics import median
from typing import Any

from bench_limits import seconds
from tqdm import tqdm

from tinyllama import Model, cli

STEPS: dict[str, dict[str, Any]] = {
    "numpy, weights in float32": {"backend": "numpy"},
    "the graph as written, on blocks": {"backend": "opencl", "fuse": False, "precise": True},
    "fused ops": {"backend": "opencl", "precise": True},
    "integers and panels, not fused": {"backend": "opencl", "fuse": False},
    "integers, panels, fused ops": {"backend": "opencl"},
}
CASES = {"prefill 512": (0, 512, 512), "decode": (16, 64, 1), "decode at 2000": (2000, 16, 1)}


class Step:
    def __init__(self, model: str, n_threads: int, settings: dict[str, Any]) -> None:
        self.model = Model.load(model, n_threads=n_threads, n_ctx=2100, **settings)
        self.context = self.model.context()
        cli.warm_up(self.context)

    def speed(self, before: int, n: int, at_once: int) -> float:
        """Tokens a second, once."""
        tokens = list(range(1, before + n + 1))
        if self.context.tokens[:before] == tokens[:before]:
            self.context.rewind(before)
        else:
            self.context.rewind(0)
            self.context.eval(tokens[:before])
        run = tokens[before:]
        return n / seconds(lambda: [self.context.eval(run[i : i + at_once]) for i in range(0, n, at_once)])

    def launches(self) -> int:
        """Kernels that a token launches."""
        before, _ = self.model.backend.launched()
        self.context.eval([1])
        return self.model.backend.launched()[0] - before


def compare(args: argparse.Namespace) -> int:
    steps = {name: Step(args.model, args.threads, settings) for name, settings in STEPS.items()}
    speeds: dict[tuple[str, str], list[float]] = {}
    turns = [(case, name) for case in CASES for _ in range(args.repetitions + 1) for name in steps]
    for case, name in tqdm(turns, leave=False, disable=None):
        speeds.setdefault((case, name), []).append(steps[name].speed(*CASES[case]))
    print(f"tokens/s, medians of {args.repetitions} turns, {args.threads} threads")
    print(f"{'':<34} {'launches':>9}" + "".join(f"{case:>16}" for case in CASES))
    for name, step in steps.items():
        told = "".join(f"{median(speeds[case, name][1:]):>16.1f}" for case in CASES)  # the first turn warms up
        print(f"{name:<34} {step.launches():>9}{told}")
    return 0


def main() -> int:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    args = parser.parse_args()
    return cli.guarded(lambda: compare(args), parser.prog)


if __name__ == "__main__":
    sys.exit(main())
