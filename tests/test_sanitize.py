"""Kernels on Oclgrind's simulated device: ours are clean there, and mistakes planted in them are found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from backends.conformance import sanitize as module
from backends.conformance.case import Case
from backends.conformance.oclgrind_log import Report, reports
from backends.conformance.sanitize import Finding, every_kernel, sanitize
from backends.conformance.sanitize_jobs import Job, jobs
from backends.device.launch import TABLE
from ops.blocks import FORMATS
from ops.errors import BackendError
from tinyllama.cli.main import main

pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from planted import BeyondTheEnd, Planted, Race, Uninitialised

needs_oclgrind = pytest.mark.skipif(shutil.which("oclgrind") is None, reason="needs oclgrind (apt-get install oclgrind)")

NORM = Case("rmsnorm", {"T": 2, "n": 37}, {"eps": 1e-5})


def test_a_log_is_read():
    log = Path(__file__).with_name("data") / "oclgrind.txt"  # what Oclgrind 21.10 wrote about four mistakes
    assert list(reports(log.read_text("utf-8"))) == [
        Report("invalid write", "race", "mistakes.cl", 3, "Invalid write of size 4 at global memory address 0x30000000000a0"),
        Report("data race", "race", "mistakes.cl", 2, "Read-write data race at local memory address 0x1000000000004"),
        Report("error of the simulator", "matmul_tile", "", 0, "Unsupported instruction: freeze"),
        Report("divergence at a barrier", "div", "mistakes.cl", 8, "Work-group divergence detected (barrier)"),
    ]


def test_the_jobs_are_every_op_format_and_cache_both_ways_for_both_kinds_of_kernels():
    every = jobs()
    for features in ("cpu", "gpu"):
        cases = [job.case for job in every if job.features == features]
        assert {case.op for case in cases} == set(TABLE)
        assert {(case.op, case.path) for case in cases} == {(op, path) for op in TABLE for path in ("kernel", "plan")}
        for op in ("matmul", "embedding"):
            assert {case.format for case in cases if case.op == op} == set(FORMATS)
        for op in ("kv_write", "attention", "attention_scores", "attention_mix"):
            assert {case.kv for case in cases if case.op == op} == {"float16", "float32"}


def test_oclgrind_that_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert main(["conformance", "opencl", "--sanitize"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "apt-get install oclgrind" in err


@needs_oclgrind
def test_our_kernels_are_clean():
    """A few; all of them are what `tinyllama conformance opencl --sanitize` runs."""
    todo = [job for job in jobs() if job.case.op in ("rmsnorm", "kv_write", "rope") or job.name == "op-matmul-Q5_1"]
    n_done = []
    result = sanitize("opencl", todo, lambda: n_done.append(1))
    assert result.findings == []
    assert len(n_done) == result.cases == len(todo)
    names = {name for _, name in result.kernels}
    assert names >= {"rmsnorm", "kv_write", "rope"}
    assert sum(name.startswith("mat") for name in names) == 3  # of decoding, and of a prompt on a CPU and on a GPU
    assert every_kernel() >= result.kernels


def found(planted: type[Planted], features: str) -> list[Finding]:
    result = sanitize(f"planted:{planted.__name__}", [Job(NORM, features)])
    assert result.findings
    assert {finding.kernel for finding in result.findings} == {"rmsnorm"}
    assert all(finding.job == Job(NORM, features) for finding in result.findings)
    return result.findings


@needs_oclgrind
@pytest.mark.parametrize("features", ["cpu", "gpu"])
def test_a_read_beyond_the_end_is_found(features):
    (finding,) = [f for f in found(BeyondTheEnd, features) if f.kind == "invalid read"]
    assert (finding.file, finding.line) == ("norm.c", BeyondTheEnd.line("i <= n"))
    assert "part[0] += x[i] * x[i]" in finding.text
    told = finding.told("planted:BeyondTheEnd")
    assert f"invalid read: rmsnorm, norm.c:{finding.line}" in told
    (again,) = [line for line in told.splitlines() if "Job(" in line and line.startswith("print")]
    assert eval(again.partition(", [")[2].partition("])")[0], {"Job": Job, "Case": Case}) == finding.job


@needs_oclgrind
def test_a_race_is_found():
    races = [f for f in found(Race, "gpu") if f.kind == "data race"]
    assert {f.file for f in races} == {"sums.c"}
    assert {f.line for f in races} <= {Race.line("shared[LANE] = x"), Race.line("if (LANE < half_of)")}
    assert all("shared[LANE]" in f.text for f in races)


@needs_oclgrind
def test_use_of_memory_that_nobody_wrote_is_found():
    findings = found(Uninitialised, "cpu")
    assert {f.kind for f in findings} == {"uninitialised"}
    uses = [Uninitialised.line(text) for text in ("float scale = 1 / sqrt", "y[i] = x[i] * scale")]
    assert {(f.file, f.line) for f in findings} <= {("norm.c", line) for line in uses}


@needs_oclgrind
def test_the_command_tells_what_it_found(capsys):
    assert main(["conformance", "opencl", "--sanitize", "-k", "silu", "--device-features", "cpu"]) == 0
    assert capsys.readouterr().out == "4 cases, 1 kernels of 1 files: clean\n"
    assert (
        main(["conformance", "planted:BeyondTheEnd", "--sanitize", "-k", "rmsnorm", "--device-features", "cpu", "--json"]) == 1
    )
    told = json.loads(capsys.readouterr().out)
    assert {(f["kernel"], f["file"]) for f in told["findings"]} == {("rmsnorm", "norm.c")}
    assert told["cases"] == 4
    assert told["kernels"] == [["norm.c", "rmsnorm"]]


@needs_oclgrind
def test_backends_without_opencl_kernels_are_told():
    with pytest.raises(
        BackendError, match=r"watches OpenCL kernels, but backend 'numpy' is no subclass of backends\.opencl:OpenCL"
    ):
        sanitize("numpy", [Job(NORM, "cpu")])
