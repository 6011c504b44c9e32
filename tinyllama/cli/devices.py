"""`tinyllama devices`: what a model can be computed on here, and what is missing to use the rest."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..devices import Usable

HELP = "list the devices of all backends, and what to install for those that cannot be used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    from backends.registry import fastest

    from ..devices import survey
    from ..printable import printable

    usable, unusable = survey()
    auto = fastest()
    if args.json:
        devices = [{"backend": u.backend, "number": u.number, **asdict(u.device), "choose": u.choose} for u in usable]
        chosen = {"backend": auto.backend.name, "describe": auto.backend.describe(), "passed_over": auto.passed_over}
        print(json.dumps({"devices": devices, "unusable": [asdict(u) for u in unusable], "auto": chosen}, indent=2))
        return 0
    for line in table(usable):
        print(printable(line))
    why = f" ({auto.passed_over})" if auto.passed_over else ""
    print(f"\n{printable(f'without --backend: {auto.backend.describe()}{why}')}")
    if unusable:
        print("\nfound, but cannot be used:")
        for u in unusable:
            print(printable(f"  {u.what}: {u.advice}"))
    return 0


def table(usable: list[Usable]) -> list[str]:
    """A line a device, columns aligned; numpy first, which is always there."""
    from backends.base import usable_cpus

    rows = [("device", "kind", "memory", "driver", "how to choose it")]
    rows.append((f"this computer, {usable_cpus()} CPUs", "CPU", "", "numpy", "--backend numpy"))
    for u in usable:
        rows.append((u.device.name, u.device.kind, f"{u.device.memory / 2**30:.1f} GiB", u.device.driver, u.choose))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
