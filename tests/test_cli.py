"""The command line, as a person meets it: stdout, stderr and the exit code."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyllama.cli import progress
from tinyllama.cli.main import COMMANDS, main
from tinyllama.cli.terminal import Parser

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "tests" / "data" / "tiny" / "llama-mha.gguf")
EXAMPLE = [sys.executable, str(ROOT / "examples" / "generate.py")]
COMMAND = [sys.executable, "-m", "tinyllama"]
ON_NUMPY = ["-m", MODEL, "--backend", "numpy"]  # which says the same everywhere; tests/test_auto.py is about the default


def call(*argv: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *argv], capture_output=True, encoding="utf-8", timeout=120, **options)


def refused(argv: list[str], capsys) -> tuple[int, str]:
    """Exit code and the one line on stderr; stdout must be empty."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, err.strip().splitlines()[-1]


@pytest.mark.parametrize("program", [EXAMPLE, [*COMMAND, "run"]], ids=["example", "run"])
def test_stdout_is_the_continuation_and_nothing_else(program):
    argv = [*program, *ON_NUMPY, "-p", "Hello", "-n", "8", "--seed", "1", "--ignore-eos", "--verbose-prompt"]
    first, second = (subprocess.run(argv, capture_output=True, encoding="utf-8", timeout=120) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout != ""
    for told in (
        "format       = GGUF v3", "arch         = llama", "n_vocab", "n_ctx", "n_embd", "n_head ", "n_head_kv", "n_layer",
        "n_rot", "n_ff", "ftype", "model size", "params", "kv self size", "mem required", "mmapped", "layers 0-", "load time",
        "seed: 1", "prompt: ", "generation  =", "tokens/s", "peak memory",
    ):  # fmt: skip
        assert told in first.stderr


def test_the_example_is_read_on_one_screen_and_uses_the_public_api():
    text = (ROOT / "examples" / "generate.py").read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert not re.search(r"import _|\._[a-z]", text)


def test_generation_flags_are_llama_cpps():
    told = call("run", "--help").stdout
    for flag in (
        "-m", "-p", "-n", "-c", "-b", "-t", "-ngl", "-s", "--seed", "--temp", "--top-k", "--top-p", "--min-p",
        "--repeat-penalty", "--backend", "--no-mmap", "--verbose-prompt", "-f", "--trace", "--weights-memory",
        "--n-gpu-layers", "--gpu-layers", "--layers", "--device", "-mg", "--main-gpu", "--device-memory", "-ctk", "-ctv",
        "--cache-type-k", "--cache-type-v", "--device-features",
    ):  # fmt: skip
        assert re.search(rf"(^|\s){flag}[\s,]", told), flag


@pytest.mark.parametrize("command", ["run", "chat", "bench", "perplexity", "plan", "graph", "conformance"])
def test_flags_of_kernels(command):
    parser = Parser()
    COMMANDS[command].add_arguments(parser)
    needed = {"plan": ["x"], "conformance": ["x"], "perplexity": ["-f", "x"]}.get(command, [])
    flags = [parser.parse_args([*needed, *given]) for given in ([], ["--precise", "--no-repack"])]
    assert [(args.precise, args.repack) for args in flags] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["run", "--backend", "numpy", "-m", "no/such/file.gguf"], 1, "no/such/file.gguf"),
        (["run", "--backend", "numpy", "-m", str(ROOT)], 1, "folder"),
        (["run", *ON_NUMPY, "-p", ""], 1, "the prompt is empty"),
        (["run", *ON_NUMPY, "-p", "x " * 5000], 1, "more than n_ctx"),
        (["run", *ON_NUMPY, "-p", "Hello Hello", "-c", "2"], 1, "more than n_ctx = 2"),
        (["run", *ON_NUMPY, "-f", "no_such_prompt.txt"], 1, "cannot read no_such_prompt.txt"),
        (["run", *ON_NUMPY, "--backend", "cuda9"], 1, "unknown backend 'cuda9': known are"),
        (["run", *ON_NUMPY, "--top-p", "2"], 1, "top_p = 2.0"),
        (["run", *ON_NUMPY, "--repeat-penalty", "0"], 1, "repeat_penalty = 0"),
        (["run", *ON_NUMPY, "--trace", "no/such/folder/t.json"], 1, "cannot write the trace"),
        (["run", *ON_NUMPY, "-n", "-2"], 2, "-n/--n-predict: -2 is out of range"),
        (["run", *ON_NUMPY, "-n", "many"], 2, "'many' is not a whole number"),
        (["run", *ON_NUMPY, "-c", "-1"], 2, "-c/--ctx-size: -1 is out of range"),
        (["run", *ON_NUMPY, "-b", "0"], 2, "-b/--batch-size: 0 is out of range"),
        (["run", *ON_NUMPY, "-t", "0"], 2, "-t/--threads: 0 is out of range"),
        (["run", *ON_NUMPY, "-ngl", "some"], 2, "-ngl takes a number of layers, all or auto"),
        (["run", *ON_NUMPY, "-ctk", "q8_0"], 2, "-ctk/--cache-type-k"),
        (["run", *ON_NUMPY, "--device-memory", "much"], 2, "--device-memory"),
        (["run", *ON_NUMPY, "-mg", "0"], 1, "the backend numpy has no devices"),
        (["run", *ON_NUMPY, "--layers", "numpy:5-9"], 1, "names layer 9: the model has layers 0 to 1"),
        (["run", *ON_NUMPY, "--layers", "numpy:0", "-ngl", "2"], 1, "give either -ngl"),
        (["run", *ON_NUMPY, "--temp", "nan"], 2, "nan is not a finite number"),
        (["run", *ON_NUMPY, "--temp", "warm"], 2, "'warm' is not a number"),
        (["run", *ON_NUMPY, "--top-k", "few"], 2, "--top-k: 'few'"),
        (["run", *ON_NUMPY, "-p", "a", "--wrong"], 2, "tinyllama run: unrecognized arguments: --wrong"),
        (["run", *ON_NUMPY, "--trace", str(ROOT)], 1, "it is a directory"),
        (["run", *ON_NUMPY, "--backend", ".x:c"], 1, "backend '.x:c' cannot be loaded"),
        (["run", *ON_NUMPY, "-p", "ab\udcff"], 1, "not valid UTF-8: byte 0xff at offset 2"),
        (["tokenize", "-m", MODEL, "-p", "ab\udcff"], 1, "not valid UTF-8: byte 0xff at offset 2"),
        (["run", *ON_NUMPY, "--seed", "-2"], 2, "-s/--seed: -2"),
        (["run", *ON_NUMPY, "--mirostat", "1"], 2, "--mirostat"),
        (["run", *ON_NUMPY, "--logit-bias", "7"], 2, "expected a token id and a bias"),
        (["run", *ON_NUMPY, "--weights-memory", "lots"], 2, "--weights-memory"),
        (["run", *ON_NUMPY, "--weights-memory", "-1G"], 2, "--weights-memory"),
        (["run", *ON_NUMPY, "--weights-memory", "1e308G"], 2, "no amount of memory"),
        (["run", *ON_NUMPY, "-p", "a", "-f", "b"], 2, "not allowed with"),
        (["run", "--no-such-flag"], 2, "--no-such-flag"),
        (["no-such-command"], 2, "no-such-command"),
        (["bench", *ON_NUMPY, "-p", "0", "-n", "0"], 1, "nothing to measure"),
        (["bench", *ON_NUMPY, "-r", "0"], 2, "-r/--repetitions: 0"),
        (["bench", *ON_NUMPY, "-p", "5,x"], 2, "'x' is not a whole number"),
    ],
)
def test_bad_input_gets_one_sentence_and_an_exit_code(argv, code, says, capsys):
    got, line = refused(argv, capsys)
    assert (got, says in line) == (code, True), line


def test_a_prompt_file_that_is_no_utf8(tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"good \xff bad")
    code, line = refused(["run", *ON_NUMPY, "-f", str(path)], capsys)
    assert (code, "0xff at offset 5" in line) == (1, True), line
    path.write_bytes(b"")
    assert "the prompt is empty" in refused(["run", *ON_NUMPY, "-f", str(path)], capsys)[1]


def test_a_prompt_file_is_read_without_its_last_newline(tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"Hello\n")
    results = []
    for source in (["-f", str(path)], ["-p", "Hello"]):
        assert main(["run", *ON_NUMPY, "-n", "5", "--temp", "0", "--ignore-eos", *source]) == 0
        results.append(capsys.readouterr().out)
    assert results[0] == results[1]


def test_escapes_in_a_prompt(capsys):
    def tokens(*flags):
        assert main(["run", *ON_NUMPY, "-n", "0", "--verbose-prompt", *flags]) == 0
        return re.search(r"prompt: (\d+) tokens", capsys.readouterr().err)[1]

    assert tokens("-p", r"a\nb") == tokens("-p", "a\nb") != tokens("--no-escape", "-p", r"a\nb")


def test_a_full_context_is_told(capsys):
    assert main(["run", *ON_NUMPY, "-p", "Hello", "-c", "12", "-n", "-1", "--ignore-eos"]) == 0
    assert "the context is full (n_ctx = 12)" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a single process")
@pytest.mark.parametrize("program", [EXAMPLE, [*COMMAND, "run"]], ids=["example", "run"])
def test_ctrl_c_ends_the_text_prints_timings_and_exits_130(program):
    argv = [*program, *ON_NUMPY, "-c", "100000", "-n", "-1", "--ignore-eos", "-p", "Hello"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(40)  # the text has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"tokens/s" in err
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes that break in this way")
def test_a_broken_pipe_is_no_error_to_tell():
    argv = [*COMMAND, "run", *ON_NUMPY, "-c", "100000", "-n", "-1", "--ignore-eos", "-p", "Hello"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(60)
    assert process.returncode == 141
    assert b"Traceback" not in err
    assert b"Exception" not in err


def test_trace_has_a_line_for_every_op_of_every_step(tmp_path):
    from tinyllama import Model

    path = tmp_path / "trace.jsonl"
    done = call("run", *ON_NUMPY, "-p", "Hello", "-n", "3", "--ignore-eos", "--temp", "0", "--trace", str(path))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    graph = Model.load(MODEL, backend="numpy").graph
    names = [n.output.name for n in graph.nodes]
    assert [r["name"] for r in records] == names * 3  # the prompt's step, and a step after each token but the last
    assert {r["step"] for r in records} == {0, 1, 2}
    scores = next(r for r in records if r["name"] == "kq_masked-0")
    assert scores["nonfinite"] > 0  # the future is masked with -inf
    down = next(r for r in records if r["name"] == "ffn_out-1")
    T, (m, n) = down["shape"][0], Model.load(MODEL, backend="numpy").tensors["blk.1.ffn_down.weight"].shape
    assert down["flops"] == 2 * T * m * n
    assert down["gflops"] == pytest.approx(down["flops"] / down["seconds"] / 1e9)
    assert {p.name for p in tmp_path.iterdir()} == {"trace.jsonl"}  # no half file


def test_bench_formats(capsys):
    argv = ["bench", *ON_NUMPY, "-p", "8", "-n", "4", "-d", "0", "-d", "3", "-r", "2", "-t", "1", "-pg", "4,2"]
    assert main([*argv, "-o", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in results] == [
        (8, 0, 0), (0, 4, 0), (4, 2, 0), (8, 0, 3), (0, 4, 3), (4, 2, 3),
    ]  # fmt: skip
    for r in results:
        assert len(r["samples_ts"]) == 2
        assert r["avg_ts"] == pytest.approx(sum(r["samples_ts"]) / 2)
        assert r["samples_ts"][0] == pytest.approx(1e9 * (r["n_prompt"] + r["n_gen"]) / r["samples_ns"][0])
        assert r["stddev_ts"] >= 0
    assert main(["bench", *ON_NUMPY, "-p", "2", "-p", "3,4", "-n", "0", "-r", "1", "-o", "json"]) == 0
    assert [r["n_prompt"] for r in json.loads(capsys.readouterr().out)] == [2, 3, 4]
    assert main([*argv, "-o", "csv"]) == 0
    assert [row["n_depth"] for row in csv.DictReader(capsys.readouterr().out.splitlines())] == ["0"] * 3 + ["3"] * 3
    assert main(argv) == 0
    table = capsys.readouterr().out
    for name in ("pp8", "tg4", "pp4+tg2", "pp8 @ d3", "t/s"):
        assert name in table


def test_help_and_import_cost_little():
    """Under 0.3 s is the aim, on a quiet machine; what can be tested anywhere is that nothing heavy is imported."""
    code = "import sys, tinyllama, tinyllama.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout.split()
    assert not {"tokenizers", "jinja2", "huggingface_hub", "PIL", "tqdm", "asyncio"} & set(loaded)
    began = time.perf_counter()
    assert call("--help").returncode == 0
    print(f"tinyllama --help: {time.perf_counter() - began:.2f} s")


def test_a_package_that_hides_ours_is_named(tmp_path):
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "__init__.py").write_text("'''something else'''")
    done = subprocess.run(
        [sys.executable, "-c", "import tinyllama"], capture_output=True, encoding="utf-8", cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "needs its own package 'backends'" in last
    assert str(tmp_path) in last


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command line as a POSIX shell runs it, with TINY for the command."""
    line = command.replace("TINY", f"'{sys.executable}' -m tinyllama")
    return subprocess.run(["sh", "-c", line], capture_output=True, timeout=120, env={**os.environ, **env}, check=False)


POSIX = pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@POSIX
@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        (f"TINY run -m {MODEL} --backend numpy -p Hi -n 3 --temp 0 2>&-", 0, None, b""),
        (f"TINY run -m {MODEL} --backend numpy -p Hi -n 3 >&-", 0, b"", b"peak memory"),
        (f"TINY tokenize -m {MODEL} --stdin --ids --no-bos <&-", 0, b"[]\n", b""),
        (f"TINY inspect -m {MODEL} > /dev/full", 1, b"", b"tinyllama inspect: cannot write to stdout"),
    ],
    ids=["no stderr", "no stdout", "no stdin", "full stdout"],
)
def test_closed_and_full_streams(command, code, out, err):
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(command)
    assert done.returncode == code
    assert err in done.stderr
    assert b"Traceback" not in done.stderr
    if out is None:
        assert b"load:" not in done.stdout  # what is for stderr does not go to stdout instead
    else:
        assert done.stdout == out


@POSIX
def test_text_is_utf8_in_any_locale():
    with_utf8 = shell(f"TINY tokenize -m {MODEL} --ids -p 日本é")
    assert shell(f"TINY tokenize -m {MODEL} --ids -p 日本é", **ASCII).stdout == with_utf8.stdout != b""
    assert shell(f"printf 日本é | TINY tokenize -m {MODEL} --ids --stdin", **ASCII).stdout == with_utf8.stdout


@POSIX
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS's file system takes no names that are not UTF-8")
def test_a_path_that_is_no_utf8_goes_out_as_it_came_in(tmp_path):
    path = os.fsencode(tmp_path) + b"/x\xff.gguf"
    Path(os.fsdecode(path)).write_bytes(Path(MODEL).read_bytes())
    done = subprocess.run([*COMMAND, "pull", path], capture_output=True, check=True)
    assert done.stdout == path + b"\n"


@POSIX
def test_a_trace_goes_through_a_pipe_and_a_link_stays_one(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    run = f"TINY run -m {MODEL} --backend numpy -p Hi -n 2 --ignore-eos --trace"
    assert int(shell(f"{run} {pipe} > /dev/null 2>&1 & wc -l < {pipe}").stdout) > 50
    assert pipe.is_fifo()
    link.symlink_to(target)
    assert shell(f"{run} {link}").returncode == 0
    assert link.is_symlink()
    assert target.read_text("utf-8").count("\n") > 50


def test_a_trace_of_a_run_that_fails_shows_where(tmp_path, capsys):
    """A NaN in the weights: the run ends with a sentence, and the trace tells which op first made one."""
    data = bytearray(Path(MODEL).read_bytes())
    data[-2000:] = b"\xff" * 2000  # NaN in every float format
    damaged, trace = tmp_path / "nan.gguf", tmp_path / "trace.jsonl"
    damaged.write_bytes(data)
    code, line = refused(["run", "--backend", "numpy", "-m", str(damaged), "-p", "Hi", "--trace", str(trace)], capsys)
    assert (code, "nan" in line) == (1, True), line
    records = [json.loads(text) for text in trace.read_text("utf-8").splitlines()]
    assert any(r["nonfinite"] and r["op"] != "causal_mask" for r in records)


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path, capsys):
    data = Path(MODEL).read_bytes()
    evil = data.replace(b"llama-mha", b"x\x1b[31mxx\n", 1)
    assert len(evil) == len(data)
    path = tmp_path / "evil.gguf"
    path.write_bytes(evil)
    assert main(["run", "--backend", "numpy", "-m", str(path), "-p", "Hi", "-n", "0"]) == 0
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert r"x\x1b[31mxx\n" in err


def test_kernels_that_compile_are_told_where_there_is_no_terminal(capsys, monkeypatch):
    """Once, and only if it takes long: kernels that come from a cache are no news."""
    assert list(progress._told_if_long([1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "FROM_CACHE", -1.0)
    assert list(progress._told_if_long([1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == "compiling kernels: 3, once for this device; they are kept ...\n"
