"""`tinyllama devices`: what a model can be computed on here, and what is missing to use the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .arguments import note
from .text import option_error

if TYPE_CHECKING:
    from backends.base import Backend
    from backends.device import DeviceBackend
    from backends.device.tuning import Answer

    from ..devices import Usable

HELP = "list the devices of all backends, and what to install for those that cannot be used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--tune", action="store_true", help="measure anew what is fast on the device that auto takes")


def run(args: argparse.Namespace) -> int:
    from backends.base import Options
    from backends.device.tuning import sizes
    from backends.registry import fastest

    from ..devices import survey
    from ..printable import printable
    from ..wish import tuning_file

    usable, unusable = survey()
    auto = fastest(Options(tuning_file=tuning_file()))
    device = tunable(auto.backend)
    if args.tune and device is None:
        raise option_error(f"--tune: {auto.backend.describe()} has no sizes to choose")
    answers = measured(device) if args.tune and device else []
    if args.json:
        devices = [{"backend": u.backend, "number": u.number, **asdict(u.device), "choose": u.choose} for u in usable]
        chosen: dict[str, Any] = {
            "backend": auto.backend.name,
            "describe": auto.backend.describe(),
            "passed_over": auto.passed_over,
        }
        if device:
            chosen["tuned"] = sizes(device.runtime.limits, device.tuned) if device.tuned else None
        print(json.dumps({"devices": devices, "unusable": [asdict(u) for u in unusable], "auto": chosen}, indent=2))
        return 0
    for line in table(usable):
        print(printable(line))
    why = f" ({auto.passed_over})" if auto.passed_over else ""
    print(f"\n{printable(f'without --backend: {auto.backend.describe()}{why}')}")
    if device:
        print(told(device))
    for line in candidates(answers):
        print(line)
    if unusable:
        print("\nfound, but cannot be used:")
        for u in unusable:
            print(printable(f"  {u.what}: {u.advice}"))
    return 0


def tunable(backend: Backend) -> DeviceBackend | None:
    """The backend, if it runs kernels of which some sizes can be chosen."""
    from backends.device import DeviceBackend
    from backends.device.tuning import fields_of

    return backend if isinstance(backend, DeviceBackend) and fields_of(backend.runtime.limits) else None


def measured(device: DeviceBackend) -> list[Answer]:
    """BackendError: it has too little memory for it."""
    from backends.device.tuning import TELLS

    note(f"{TELLS} ...")
    return device.tune(lambda items, told: items, anew=True)


def told(device: DeviceBackend) -> str:
    from backends.device import tuning

    from ..printable import printable

    file = device.options.tuning_file
    if device.tuned:
        not_kept = ""
        if file is None or tuning.kept(file, device.runtime.limits) != device.tuned:
            why = f"it is not in {printable(str(file))}, which may not be written" if file else "there is no file to keep it in"
            not_kept = f"; not kept: {why} (TINYLLAMA_TUNING)"
        return f"tuned: {tuning.told(device.runtime.limits, device.tuned)}{not_kept}"
    if file is None:
        return "not tuned: there is no file to keep the result in (TINYLLAMA_TUNING)"
    return "not tuned yet: the first model that runs here does it"


def candidates(answers: Sequence[Answer]) -> list[str]:
    """A line for each, with how fast it was and how many times as fast as the default; the chosen ones are marked."""
    from statistics import median

    from backends.device.tuning import WORDS

    rows = [("size", "candidate", "rate", "to the default", "")]
    for answer in answers:
        for n in sorted(answer.seconds):
            chosen = "chosen" if n == answer.chosen else ""
            rows.append((WORDS[answer.field], str(n), answer.rate(n), f"x {median(answer.gains(n)):.2f}", chosen))
    return columns(rows) if answers else []


def table(usable: list[Usable]) -> list[str]:
    """A line a device, columns aligned; numpy first, which is always there."""
    from backends.base import usable_cpus

    rows = [("device", "kind", "memory", "driver", "how to choose it")]
    rows.append((f"this computer, {usable_cpus()} CPUs", "CPU", "", "numpy", "--backend numpy"))
    for u in usable:
        rows.append((u.device.name, u.device.kind, f"{u.device.memory / 2**30:.1f} GiB", u.device.driver, u.choose))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
