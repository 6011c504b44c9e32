"""`tinyllama inspect` on a file that the `gguf` package wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ops.errors import TinyLlamaError
from tinyllama.cli import inspect

TEMPLATE = "{{ bos_token }}\n" + "x" * 500
SCORES = [0.5, float("nan"), float("inf"), -1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
TOKENS = ["<s>", "▁a", "\x1b[2J", "'", "e", "f", "g", "h", "i"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("evil \x1b[31m name")
    writer.add_license("apache-2.0")
    writer.add_string("broken", b"caf\xe9")  # type: ignore[arg-type]  # Latin-1, not UTF-8
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("eps", 1e-5)
    writer.add_bool("flag", True)
    writer.add_chat_template(TEMPLATE)
    writer.add_array("scores", SCORES)
    writer.add_array("tokens", TOKENS)
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_array("languages", ["en", "fr"])
    writer.add_tensor("w", np.zeros((3, 2 * 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("norm", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def output(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    assert inspect.run(parser.parse_args(flags)) == 0
    printed: str = capsys.readouterr().out
    return printed


def line_of(printed: str, first_word: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.split()[:1] == [first_word]]
    return line


def test_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, str(model))
    path, form, licence, *_ = printed.splitlines()
    assert path == str(model)
    assert "GGUF v3" in form
    assert "apache-2.0" in licence
    assert line_of(printed, "llama.rope.freq_base").split()[1:] == ["10000"]
    assert line_of(printed, "eps").split()[1:] == ["1e-05"]
    assert "[9 items: '<s>', '▁a', " in line_of(printed, "tokens")
    assert "[9 items: 0.5, nan, inf, ...]" in line_of(printed, "scores")
    assert "[[1, 2], [3]]" in line_of(printed, "nested")
    assert "['en', 'fr']" in line_of(printed, "languages")
    template = line_of(printed, "tokenizer.chat_template")
    assert f"{len(TEMPLATE)} characters" in template
    assert len(template) < 200
    assert line_of(printed, "w").split() == ["w", "Q4_0", "[3,", "64]", str(3 * 2 * 18)]
    assert line_of(printed, "norm").split() == ["norm", "F32", "[64]", "256"]
    assert f"2 tensors, {3 * 64 + 64} parameters, {3 * 2 * 18 + 256} bytes" in line_of(printed, "total:")


def test_text_from_the_file_cannot_steer_the_terminal(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, str(model))
    assert all(c.isprintable() for c in printed.replace("\n", ""))
    assert r"evil \x1b[31m name" in printed
    printed.encode()  # no lone surrogate is left of the byte that was not UTF-8
    assert line_of(printed, "broken").split()[1] == r"caf\udce9"


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def not_json(constant: str) -> Any:
        pytest.fail(f"{constant} is not JSON")

    printed = output(capsys, "--json", str(model))
    printed.encode("ascii")
    told = json.loads(printed, parse_constant=not_json)
    assert told["format"] == "GGUF v3"
    assert told["path"] == str(model)
    assert told["metadata"]["scores"] == [0.5, None, None, *SCORES[3:]]
    assert told["metadata"]["tokens"] == TOKENS
    assert told["metadata"]["nested"] == [[1, 2], [3]]
    assert told["metadata"]["flag"] is True
    assert told["metadata"]["tokenizer.chat_template"] == TEMPLATE
    assert told["tensors"] == [
        {"name": "w", "shape": [3, 64], "type": "Q4_0", "bytes": 108},
        {"name": "norm", "shape": [64], "type": "F32", "bytes": 256},
    ]
    assert (told["n_tensors"], told["n_params"], told["bytes"]) == (2, 256, 364)


def test_model_flag(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "-m", str(model)) == output(capsys, str(model))


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(TinyLlamaError, match="not a model file"):
        inspect.run(argparse.Namespace(model=str(tmp_path / "x.gguf"), model_flag=None, json=False))
