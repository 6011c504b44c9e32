"""The kernels under Oclgrind: a simulated device that sees reads and writes out of bounds, data races, and use of memory that
nobody has written. What it finds is told with kernel, source line and case.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from ops.errors import BackendError

from ..base import usable_cpus
from ..device.sources import KERNELS
from ..opencl.devices import load_pyopencl
from .sanitize_jobs import Job, jobs

INSTALL = (
    "Oclgrind is not installed (`apt-get install oclgrind` on Debian and Ubuntu; elsewhere https://github.com/jrprice/Oclgrind)"
)
# Without the optimiser, which moves code to other lines and makes instructions that Oclgrind does not know.
OCLGRIND = ["oclgrind", "--data-races", "--uninitialized", "--build-options", "-cl-opt-disable", "--max-wgsize", "256"]
OCLGRIND += ["--num-threads", "1", "--global-mem-size", str(1 << 30), "--max-errors", "100000"]


@dataclass(frozen=True)
class Finding:
    """One line of a kernel that does one thing wrong, and the first case in which it did."""

    kind: str  # "invalid read", "data race", "uninitialised", ...
    kernel: str
    file: str
    line: int
    text: str  # that line of the source
    message: str  # Oclgrind's
    job: Job
    times: int = 1

    def told(self, backend: str) -> str:
        """A few lines for people, with the code that runs the case again."""
        place = f", {self.file}:{self.line}" if self.file else ""
        code = f"\n    {self.text}" if self.text else ""
        return (
            f"{self.kind}: {self.kernel or self.job.case.op}{place} ({self.job.features} kernels, {self.times} times){code}\n"
            f"    {self.message}\n\n"
            "To see it again, in python:\n\n"
            "from backends.conformance.case import Case\n"
            "from backends.conformance.sanitize import sanitize\n"
            "from backends.conformance.sanitize_jobs import Job\n\n"
            f"print(sanitize({backend!r}, [{self.job!r}]).findings)\n"
        )


@dataclass
class Sanitized:
    """What came of a run."""

    cases: int
    findings: list[Finding] = field(default_factory=list)
    kernels: set[tuple[str, str]] = field(default_factory=set)  # launched: file, name

    def never_launched(self) -> list[str]:
        """Kernels in backends/device/kernels that no case has reached."""
        return [f"{kernel} ({file})" for file, kernel in sorted(every_kernel() - self.kernels)]

    def summary(self) -> str:
        n, files = len(self.findings), len({file for file, _ in self.kernels})
        verdict = "clean" if not n else f"{n} finding{'s' if n > 1 else ''}"
        return f"{self.cases} cases, {len(self.kernels)} kernels of {files} files: {verdict}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cases": self.cases,
            "kernels": [list(kernel) for kernel in sorted(self.kernels)],
            "findings": [{**asdict(f), "job": repr(f.job)} for f in self.findings],
        }


def every_kernel() -> set[tuple[str, str]]:
    """File and name of each kernel there is."""
    found = (
        (path.name, re.findall(r"^KERNEL void (\w+)", path.read_text("utf-8"), re.MULTILINE)) for path in KERNELS.glob("*.c")
    )
    return {(file, name) for file, names in found for name in names}


def sanitize(backend: str, todo: Sequence[Job] | None = None, done: Callable[[], object] = lambda: None) -> Sanitized:
    """Run these jobs, or all, on the simulator, in as many processes as there are processors; `done` is called after each.

    BackendError: Oclgrind is missing, or the backend cannot run on it.
    """
    if shutil.which("oclgrind") is None:
        raise BackendError(INSTALL)
    load_pyopencl()
    todo = jobs() if todo is None else todo
    n = min(usable_cpus(), len(todo)) or 1
    result, lock = Sanitized(len(todo)), Lock()
    found: dict[tuple[str, str, str, int], Finding] = {}
    stopped = Event()

    def work(part: Sequence[Job]) -> None:
        for job, reports, kernels in _answers(backend, part, stopped):
            with lock:
                result.kernels.update(kernels)
                for report in reports:
                    finding = Finding(**report, job=job)
                    key = finding.kind, finding.kernel, finding.file, finding.line
                    known = found.get(key)
                    found[key] = replace(known, times=known.times + 1) if known else finding
                done()

    with ThreadPoolExecutor(n) as pool:
        try:
            list(pool.map(work, [todo[i::n] for i in range(n)]))
        finally:  # also after an error, or Ctrl-C: nobody goes on
            stopped.set()
    result.findings = sorted(found.values(), key=lambda f: (f.file, f.line, f.kernel, f.kind))
    return result


Answer = tuple[Job, list[dict[str, Any]], set[tuple[str, str]]]


def _answers(backend: str, todo: Sequence[Job], stopped: Event) -> Iterator[Answer]:
    """What the simulator says of each job. One in which it dies is told so, and another process goes on after it."""
    while todo:
        n_done, begun = 0, False
        with tempfile.TemporaryDirectory() as folder:
            errors = Path(folder, "errors")
            with _start(Path(folder, "log"), errors) as process:
                assert process.stdin
                assert process.stdout
                process.stdin.write(json.dumps({"backend": backend, "jobs": [asdict(job) for job in todo]}))
                process.stdin.close()
                for line in process.stdout:
                    if stopped.is_set():
                        process.kill()
                        return
                    answer = json.loads(line)
                    if "error" in answer:
                        raise BackendError(answer["error"])
                    begun = "begun" in answer
                    if not begun:
                        yield todo[n_done], answer["reports"], {(file, name) for file, name in answer["kernels"]}
                        n_done += 1
            last = (errors.read_text("utf-8", "replace").strip() or "it says nothing").splitlines()[-1].strip()
        told = f"exit code {process.returncode}: {last}"
        if n_done < len(todo) and not begun:
            raise BackendError(f"oclgrind does not run here ({told})")
        if begun:
            died = {"kind": "the simulator died", "kernel": "", "file": "", "line": 0, "text": ""}
            yield todo[n_done], [{**died, "message": told}], set()
            n_done += 1
        todo = todo[n_done:]


def _start(log: Path, errors: Path) -> subprocess.Popen[str]:
    """A worker that imports what this process can import. No cache of compiled kernels, which have lost their source lines."""
    log.touch()  # Oclgrind makes it when it has something to do
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENCL_CTX"}
    with errors.open("wb") as stderr:
        return subprocess.Popen(
            [*OCLGRIND, "--log", str(log), sys.executable, "-m", "backends.conformance.sanitize_worker"],
            env={**environment, "PYTHONPATH": path, "PYOPENCL_NO_CACHE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
