"""The process that runs under Oclgrind: takes jobs from stdin, and tells of each on stdout what the simulator found.

In, one JSON object: {"backend": name, "jobs": [...]}. Out, two lines of JSON a job:
{"begun": number}, and when it is over {"reports": [...], "kernels": [...]}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from ops.errors import BackendError, TinyLlamaError

from ..base import Options
from ..device import DeviceBackend, sources
from ..opencl.devices import chosen
from ..opencl.runtime import OpenCLRuntime
from ..registry import get_backend
from .case import Case
from .judge import check_case
from .oclgrind_log import Report, reports
from .sanitize_jobs import Job
from .simulated import SimulatedRuntime

DEVICE = "Oclgrind"


def main(told: IO[str]) -> None:
    """Run all jobs. A backend that cannot be run here is told as {"error": sentence}."""
    asked = json.loads(sys.stdin.read())
    backends: dict[tuple[str, int, bool], tuple[DeviceBackend, SimulatedRuntime]] = {}
    with Path(os.environ["OCLGRIND_LOG"]).open(encoding="utf-8", errors="replace") as log:
        for number, given in enumerate(asked["jobs"]):
            job = Job(Case(**given.pop("case")), **given)
            print(json.dumps({"begun": number}), file=told, flush=True)
            key = job.features, job.group_size, job.precise
            try:
                backend, runtime = backends[key] = backends.get(key) or _simulated(asked["backend"], *key)
            except TinyLlamaError as error:
                print(json.dumps({"error": str(error)}), file=told, flush=True)
                return
            found = _run(backend, job, log)
            print(json.dumps({"reports": found, "kernels": sorted(runtime.kernels)}), file=told, flush=True)


def _simulated(name: str, features: str, group_size: int, precise: bool) -> tuple[DeviceBackend, SimulatedRuntime]:
    """The backend, on a runtime that keeps the simulator informed, of a device with small work-groups."""
    features = "portable" if features == "cpu" else features
    backend = get_backend(name, Options(device=DEVICE, device_features=features, precise=precise))
    if not isinstance(backend, DeviceBackend) or not isinstance(backend.runtime, OpenCLRuntime):
        raise BackendError(f"--sanitize watches OpenCL kernels, but backend '{name}' is no subclass of backends.opencl:OpenCL")
    runtime = SimulatedRuntime(chosen(DEVICE), replace(backend.runtime.limits, group_size=group_size))
    backend.runtime = runtime
    return backend, runtime


def _run(backend: DeviceBackend, job: Job, log: IO[str]) -> list[dict[str, Any]]:
    """One case, finished before the log is read. A wrong result counts where the simulator saw no reason for it."""
    wrong = ""
    try:
        check_case(backend, job.case)
        backend.synchronize()
    except AssertionError as error:
        wrong = str(error).splitlines()[0]
    found = list(reports(log.read()))
    if wrong and not found:
        found = [Report("wrong result", "", "", 0, wrong)]
    return [{**asdict(report), "text": _text(report)} for report in found]


def _text(report: Report) -> str:
    """The line of the kernel's source."""
    path = sources.KERNELS / report.file
    lines = path.read_text("utf-8").splitlines() if report.file and path.is_file() else []
    return lines[report.line - 1].strip() if 0 < report.line <= len(lines) else ""


if __name__ == "__main__":
    stdout, sys.stdout = sys.stdout, sys.stderr  # what a backend prints does not belong to the answer
    main(stdout)
