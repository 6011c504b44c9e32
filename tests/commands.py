"""What the tests of commands that write a file share."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tinyllama.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line with which a command is refused."""
    assert main([*map(str, argv)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    """As the `gguf` package reads them, by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
