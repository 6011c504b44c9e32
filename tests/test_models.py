"""Finding a model by name or path; fetching has tests of its own, test_fetch.py and test_hub.py."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ops.errors import OptionError
from tinyllama import fetch, models
from tinyllama.models import find


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(OptionError, match=r"no model 'smolm2': .*\(smollm2.*hf:OWNER/REPO/FILE\.gguf"):
        find("smolm2")
    with pytest.raises(OptionError, match="no model ''"):
        find("")


def test_existing_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    assert find(file) == file
    assert find(str(file)) == file
    assert find(tmp_path) == tmp_path


def test_a_name_comes_before_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = replace(models.MODELS["smollm2"], name="tiny", member="tiny.gguf", nbytes=4)
    monkeypatch.setitem(models.MODELS, "tiny", tiny)
    monkeypatch.setenv("TINYLLAMA_CACHE", str(tmp_path))
    (tmp_path / "tiny.gguf").write_bytes(b"tiny")
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert find("tiny") == tmp_path / "tiny.gguf"
    assert find("./tiny") == Path("tiny")
    assert find(Path("tiny")) == Path("tiny")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"TINYLLAMA_CACHE": "own", "XDG_CACHE_HOME": "/xdg"}, "own"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/tinyllama"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/tinyllama"),
        ("darwin", {}, "~/Library/Caches/tinyllama"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/tinyllama"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/tinyllama"),
        ("win32", {}, "~/AppData/Local/tinyllama"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="/xdg is an absolute path on POSIX only")
def test_cache_folder(platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["TINYLLAMA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert fetch.cache_folder() == Path(expected).expanduser()


def test_smollm2_is_what_the_registry_says(smollm2: Path) -> None:
    with smollm2.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    assert digest.hexdigest() == models.MODELS["smollm2"].sha256
    assert smollm2.stat().st_size == models.MODELS["smollm2"].nbytes


def test_pull_prints_the_path_alone(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tinyllama.cli import pull

    parser = argparse.ArgumentParser()
    pull.add_arguments(parser)
    assert pull.run(parser.parse_args(["smollm2"])) == 0
    out, err = capsys.readouterr()
    assert out == f"{smollm2}\n"
    assert "apache-2.0" in err  # as the file says of itself
