"""`tinyllama tokenize`, with the vocabulary of LLaMA."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from ops.errors import OptionError
from tinyllama.cli import tokenize

VOCABULARY = Path(__file__).parent / "data/vocab/ggml-vocab-llama-spm.gguf"


def run_tokenize(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    tokenize.add_arguments(parser)
    return tokenize.run(parser.parse_args(["-m", str(VOCABULARY), *flags]))


def test_command_prints_as_llama_tokenize(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenize("-p", "Hello\\n", "--show-count") == 0
    assert capsys.readouterr().out == "     1 -> '<s>'\n 15043 -> ' Hello'\n    13 -> '\n'\nTotal number of tokens: 3\n"


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        (["-p", "Hello"], "[1, 15043]\n"),
        (["-p", "Hello", "--no-bos"], "[15043]\n"),
        (["-p", "<s>", "--no-bos"], "[1]\n"),
        (["-p", "<s>", "--no-bos", "--no-parse-special"], "[529, 29879, 29958]\n"),
        (["-p", "\\n", "--no-bos", "--no-escape"], "[320, 29876]\n"),
        (["-p", "", "--no-bos"], "[]\n"),
    ],
)
def test_command_flags(flags: list[str], out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenize(*flags, "--ids") == 0
    assert capsys.readouterr().out == out


def test_command_reads_files_and_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"Hello\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n")))
    run_tokenize("-f", str(file), "--ids")
    run_tokenize("--stdin", "--ids")
    assert capsys.readouterr().out == "[1, 15043, 13]\n" * 2  # the last newline counts


@pytest.mark.parametrize("flags", [[], ["-p", "a", "--stdin"], ["-p", "a", "-f", "a"]])
def test_command_needs_one_text(flags: list[str]) -> None:
    with pytest.raises(OptionError, match="exactly one text"):
        run_tokenize(*flags)


def test_command_names_the_place_of_bytes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"abc\xff")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\xff")))
    for flags in (["-f", str(file)], ["--stdin"]):
        with pytest.raises(OptionError, match="0xff at offset 3"):
            run_tokenize(*flags)
