"""The conformance kit's own plumbing: pytest's options, the command, skips and xfails, code that shows a failure again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ops
from backends import Backend
from backends.conformance.arrays import LAYOUTS, laid_out
from backends.conformance.blocks import SCALES, weight
from backends.conformance.case import Case
from backends.conformance.expected import read_patterns
from backends.conformance.judge import Tally, check_case
from backends.conformance.runner import run_check
from backends.conformance.select import selected
from backends.conformance.strategies import cases, dtypes
from backends.conformance.suite import checks
from backends.numpy import Numpy
from ops.errors import OptionError
from ops.op import OPS

BACKENDS = """
import numpy as np
import ops
from backends.base import Backend, kernel
from backends.numpy import Numpy

class Wrong(Numpy):
    name = "wrong"

    @kernel(ops.silu)
    def silu(self, x):
        y = ops.silu.formula(x)
        if x.shape[1] > 3:
            y = y * np.float32(1.001)
        return y

    @kernel(ops.add)
    def add(self, a, b):
        raise RuntimeError("the device is lost")

class Few(Backend):
    name = "few"

    @kernel(ops.silu)
    def silu(self, x):
        return ops.silu.formula(x)

class Absent(Backend):
    def __init__(self, options=None):
        raise RuntimeError("no device")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder somewhere, with backends in a module of its own."""
    (tmp_path / "mine.py").write_text(BACKENDS, "utf-8")
    return tmp_path


def run_pytest(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"]
    return subprocess.run(
        [*command, "--pyargs", "backends.conformance", *args], cwd=folder, capture_output=True, encoding="utf-8", timeout=120
    )


def run_command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinyllama", "conformance", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=120)


def test_pytest_in_any_folder(folder):
    done = run_pytest(
        folder, "--backend", "mine:Few", "-k", "op-silu-f32 or op-swiglu-f32 or op-mul-f32", "--hypothesis-seed=1", "-v"
    )
    assert done.returncode == 0, done.stdout
    assert "conformance of backend: few (mine:Few)" in done.stdout
    assert "runs on: numpy, formula by formula" in done.stdout
    assert f"numpy {np.__version__}" in done.stdout
    assert re.search(r"test_check\[op-silu-f32\] PASSED", done.stdout)
    assert re.search(r"test_check\[op-swiglu-f32\] FALLBACK \(swiglu decomposed\)", done.stdout)
    assert re.search(r"test_check\[op-mul-f32\] FALLBACK \(mul on the host\)", done.stdout)
    assert "1 passed" in done.stdout
    assert "2 fallback" in done.stdout


def test_a_failure_is_told_with_code_that_shows_it_again(folder):
    done = run_pytest(folder, "--backend", "mine:Wrong", "-k", "op-silu-f32 or op-add-f32")
    assert done.returncode == 1, done.stdout
    by_kernel, lost = re.split(r"_+ test_check\[op-silu-f32\] _+", done.stdout)[1], done.stdout
    assert re.search(r"worst at \[\d+, \d+\]: expected \S+, got \S+", by_kernel)
    assert re.search(r"NMSE \S+e-\d+, limit \S+e-\d+ \(\d+ roundings", by_kernel)
    assert "raised RuntimeError: the device is lost" in lost
    # hypothesis tells each distinct failure it found of a check: by kernel, by the lost device, or both
    codes = re.findall(r"^from backends import get_backend\n.*?^check_case\(.*?$", done.stdout, re.DOTALL | re.MULTILINE)
    assert len(codes) == len(re.findall(r"^check_case", done.stdout, re.MULTILINE)) >= 2
    for code in codes:
        again = subprocess.run([sys.executable, "-"], input=code, cwd=folder, capture_output=True, encoding="utf-8", timeout=60)
        assert again.returncode == 1
        assert "AssertionError: silu through" in again.stderr or "RuntimeError: the device is lost" in again.stderr


def test_a_failure_of_a_graph_shows_itself_again(folder):
    outcome = run_check(sys_path_backend(folder, "Wrong"), checks()["graph-unfused"], at=1)
    code = outcome.told[outcome.told.index("from backends") :]
    again = subprocess.run([sys.executable, "-"], input=code, cwd=folder, capture_output=True, encoding="utf-8", timeout=60)
    assert "RuntimeError: the device is lost" in again.stderr


def sys_path_backend(folder: Path, name: str) -> Backend:
    sys.path.insert(0, str(folder))
    try:
        sys.modules.pop("mine", None)
        return getattr(__import__("mine"), name)()
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--backend", "mine:Absent"], "backend 'mine:Absent' cannot be used here: RuntimeError: no device"),
        (["--backend", "nothing"], "unknown backend 'nothing'"),
        ([], "name the backend to test: --backend"),
        (["--backend", "numpy", "--skips-file", "skips.txt"], "skips.txt, line 2: 'op-nothing' is no check"),
        (["--backend", "numpy", "--xfails-file", "none.txt"], "cannot read none.txt: No such file or directory"),
    ],
)
def test_what_cannot_run_is_one_sentence(folder, args, sentence):
    (folder / "skips.txt").write_text("# ours\nop-nothing\n", "utf-8")
    done = run_pytest(folder, *args)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stdout == ""
    assert done.stderr.strip().startswith(f"ERROR: {sentence}")
    assert len(done.stderr.strip().splitlines()) == 1


def test_skips_and_xfails(folder):
    (folder / "skips.txt").write_text("add:f32  # not written yet\n", "utf-8")
    (folder / "xfails.txt").write_text("op-sil*\n", "utf-8")
    args = ["-k", "op-silu-f32 or op-add-f32 or op-mul-f32", "--skips-file", "skips.txt", "--xfails-file", "xfails.txt"]
    done = run_pytest(folder, "--backend", "mine:Wrong", *args, "-rs")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert "1 xfailed" in done.stdout
    assert "not written yet" in done.stdout
    told = run_command(folder, "mine:Wrong", *args, "--json")
    assert told.returncode == 0, told.stderr
    assert {c["name"]: c["verdict"] for c in json.loads(told.stdout)["checks"]} == {
        "op-add-f32": "skipped", "op-mul-f32": "ok", "op-silu-f32": "xfailed",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["conftest.py", "another_plugin.py"])
def test_another_backend_option_stays_and_is_read(folder, where):
    """A conftest's, and one of a plugin loaded before: both are someone else's, and their suites must go on working."""
    option = "def pytest_addoption(parser):\n    parser.addoption('--backend', action='append', dest='whatever')\n"
    (folder / where).write_text(option, "utf-8")
    (folder / "test_theirs.py").write_text(
        "def test_it(request):\n    assert request.config.option.whatever == ['x']\n", "utf-8"
    )
    plugin = [] if where == "conftest.py" else ["-p", "another_plugin"]
    theirs = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "--backend", "x", "."],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    assert theirs.returncode == 0, theirs.stdout + theirs.stderr
    ours = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "--pyargs", "backends.conformance", "--backend", "mine:Few", "-k", "op-silu"],
        cwd=folder, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert ours.returncode == 0, ours.stdout + ours.stderr
    assert "1 passed" in ours.stdout


@pytest.mark.skipif(find_spec("xdist") is None, reason="needs pytest-xdist, of the extra `test`")
def test_in_several_processes(folder):
    done = run_pytest(folder, "--backend", "mine:Few", "-n", "2", "-k", "op-silu-f32 or op-add-f32 or contract-told")
    assert done.returncode == 0, done.stdout
    assert "2 passed, 1 fallback" in done.stdout


def test_the_command_prints_a_table_and_ends_with_1_if_anything_fails(folder):
    done = run_command(folder, "mine:Wrong", "-k", "(op-silu or op-mul) and f32", "--seed", "3", "--examples", "30")
    assert done.returncode == 1
    assert re.search(r"^op +dtype +cases +worst NMSE +where +verdict +by$", done.stdout, re.MULTILINE)
    assert re.search(r"^mul +f32 +30 +\S+e-\d+ +T=\d+ n=\d+ .* ok +kernel$", done.stdout, re.MULTILINE)
    assert re.search(r"^silu +f32 .* FAILED +kernel$", done.stdout, re.MULTILINE)
    assert "check_case(backend, Case('silu'" in done.stdout
    assert done.stdout.rstrip().endswith("1 ok, 1 FAILED")
    again = run_command(folder, "mine:Wrong", "-k", "(op-silu or op-mul) and f32", "--seed", "3", "--examples", "30")
    assert again.stdout == done.stdout  # nothing is drawn otherwise


def test_support_runs_nothing(folder):
    done = run_command(folder, "mine:Few", "--support", "--json", "-k", "op-silu or op-swiglu or op-matmul-Q4_K")
    assert json.loads(done.stdout)["support"] == [
        {"op": "silu", "dtype": "f32", "by": "kernel"},
        {"op": "swiglu", "dtype": "f32", "by": "decomposed"},
        {"op": "matmul", "dtype": "Q4_K", "by": "on the host"},
    ]


def test_perf_is_measured_beside_numpy(folder):
    done = run_command(folder, "numpy", "--perf", "--json", "-k", "op-add-f32", "--examples", "1")
    records = json.loads(done.stdout)["perf"]
    assert [r["shape"] for r in records] == ["T=1 n=2048", "T=64 n=2048"]
    for r in records:
        # a sum of two arrays in float32 moves 12 bytes for each operation
        assert r["gbytes"] == pytest.approx(12 * r["gflops"])
        assert r["gflops"] == pytest.approx(int(r["shape"][2:4]) * 2048 / r["microseconds"] / 1e3)
        assert r["numpy_microseconds"] > 0


def test_words_that_fit_nothing_are_told():
    with pytest.raises(OptionError, match="fits no check"):
        selected(checks(), "sillu")
    with pytest.raises(OptionError, match="cannot be read"):
        selected(checks(), "silu and (")
    assert list(selected(checks(), "op-matmul- and (q5_0 or Q5_1)")) == ["op-matmul-Q5_0", "op-matmul-Q5_1"]


def test_patterns_name_checks_or_an_op_and_a_dtype(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("matmul:Q?_1  # slow\n\ntest_check[op-silu-f32]\nlaw-softmax-*\n", "utf-8")
    found = read_patterns(file, checks())
    assert {"op-matmul-Q4_1", "op-matmul-Q5_1", "op-silu-f32", "law-softmax-shift"} <= set(found)
    assert found["op-matmul-Q4_1"] == "slow"
    assert "op-matmul-Q4_0" not in found


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_a_case_is_made_again_from_its_repr(op):
    @given(st.data())
    def check(data):
        case = data.draw(cases(op, data.draw(st.sampled_from(dtypes(op)))))
        assert eval(repr(case), {"Case": Case}) == case
        shapes = [x.shape for x in case.operands()]
        assert op.infer(shapes, case.attrs)  # no ShapeError
        for a, b in zip(case.operands_in_double(), case.operands_in_double(), strict=True):
            np.testing.assert_array_equal(a, b)
        for operand, x in zip(op.inputs, case.operands(), strict=True):
            if not operand.written and operand.dtype == "float" and case.values != "masked":
                assert np.isfinite(x).all()

    check()


@pytest.mark.parametrize("name", list(ops.FORMATS))
@pytest.mark.parametrize("scales", SCALES)
def test_every_weight_is_a_finite_number(name, scales):
    n = 4 * ops.FORMATS[name].block_size
    tensor = weight(np.random.default_rng(0), "w", (50, n), name, scales)
    assert tensor.data.shape == (50, ops.FORMATS[name].row_bytes(n))
    assert np.isfinite(tensor.dequantize()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_value(layout):
    for shape in ((5,), (3, 4), (2, 3, 5)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(laid_out(x, layout), x)


def test_an_op_that_is_registered_later_gets_checks_from_its_signature():
    @ops.op("x[T, n], gain[n], positions:int[T] -> y[T, n]", flops="2*T*n")
    def kit_scaled(x, gain, positions, *, power: int = 1, sign: bool = False):
        """y = x * gain^power"""
        return x * gain**power * (-1 if sign else 1)

    try:
        outcome = run_check(Numpy(), checks()["op-kit_scaled-f32"], at=0)
        assert (outcome.verdict, outcome.by) == ("fallback", "kit_scaled on the host")
        assert outcome.tally.cases == 100
    finally:
        del OPS["kit_scaled"]
        for name in [name for name in checks() if "kit_scaled" in name]:
            del __import__("backends.conformance.check").conformance.check.CHECKS[name]


def test_the_truth_is_the_formula_in_float64():
    case = Case("matmul", {"T": 2, "m": 3, "n": 32}, format="Q4_0", seed=5)
    x, w = case.operands()
    (truth,), written = case.truth()
    expected = [[sum(float(a) * float(b) for a, b in zip(xs, ws, strict=True)) for ws in w.dequantize()] for xs in x]
    np.testing.assert_allclose(truth, expected, rtol=1e-12)  # 32 roundings of float64
    assert written == {}
    check_case(Numpy(), case)
    assert Tally().where is None
