"""Fetching from a Hugging Face Hub: the real huggingface_hub against a small server of our own."""

from __future__ import annotations

import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.errors import FetchError, OptionError
from tinyllama import models
from tinyllama.models import find

ROOT = Path(models.__file__).parents[1]
FILE = b"a model"
ADDRESS = "hf:owner/repo/folder/tiny.gguf"
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason='needs huggingface_hub: pip install "tinyllama[hub]"'
)


class Hub(http.server.BaseHTTPRequestHandler):
    """What a Hub answers for a file: the headers that `huggingface_hub.HfFileMetadata` is made from."""

    def do_GET(self) -> None:
        repo, _, file = self.path.lstrip("/").partition("/resolve/")
        if repo == "owner/gated":
            self.refuse(403, "GatedRepo")
        elif repo != "owner/repo":
            self.refuse(404, "RepoNotFound")
        elif file.partition("/")[2] != "folder/tiny.gguf":
            self.refuse(404, "EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{"e" * 40}"')
            self.send_header("Content-Length", str(len(FILE)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(FILE)

    do_HEAD = do_GET

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a running Hub, set as HF_ENDPOINT; HF_HOME is an empty folder."""
    for name in os.environ:
        if name.upper().startswith(("HF_", "HUGGING")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(address: str) -> tuple[Path | None, str]:
    """What `find` gives, and what it wrote or raised, in a fresh process: huggingface_hub reads HF_* when imported."""
    script = (
        "import sys; from ops.errors import TinyLlamaError; from tinyllama.models import find\n"
        "try: print(find(sys.argv[1]))\n"
        "except TinyLlamaError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return (Path(process.stdout.removesuffix("\n")) if process.returncode == 0 else None), process.stderr


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@needs_hub
def test_fetched_once_then_cached(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, err = found(ADDRESS)
    assert path is not None, err
    assert path.read_bytes() == FILE
    assert path.is_relative_to(tmp_path / "hf")
    assert err == f"fetching folder/tiny.gguf (0 MB) from {hub}/owner/repo ...\n"

    assert found(ADDRESS) == (path, "")
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        assert found(ADDRESS) == (path, "")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert found(ADDRESS) == (path, "")


@needs_hub
@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("hf:owner/other/tiny.gguf", "shows no repository owner/other: check the spelling"),
        ("hf:owner/gated/tiny.gguf", "owner/gated is gated: accept its terms"),
        ("hf:owner/repo/other.gguf", "owner/repo has no file other.gguf: see "),
    ],
)
def test_not_there(address: str, sentence: str, hub: str) -> None:
    path, err = found(address)
    assert path is None
    assert err.startswith("FetchError: ")
    assert sentence in err
    assert err.count("\n") == 1


@needs_hub
def test_offline_and_not_cached(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"FetchError: {ADDRESS} is not in the cache and HF_HUB_OFFLINE is set" in found(ADDRESS)[1]


@needs_hub
def test_no_network_and_not_cached(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    err = found(ADDRESS)[1]
    assert err.startswith(f"FetchError: {ADDRESS} could not be fetched from {endpoint} (")
    assert err.endswith("): check the network, and the room in HF_HOME\n")
    assert err.count("\n") == 1


@needs_hub
def test_cache_that_cannot_be_written(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert f"FetchError: {ADDRESS} could not be fetched from {hub} (" in found(ADDRESS)[1]


@pytest.mark.parametrize("address", ["hf:", "hf:x.gguf", "hf:owner/repo", "hf:owner/repo/", "hf:owner/repo/../x.gguf"])
def test_malformed_address(address: str) -> None:
    with pytest.raises(OptionError) as caught:
        find(address)
    assert str(caught.value) == f"{address} is no file on the Hugging Face Hub: give hf:OWNER/REPO/FILE.gguf"


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # makes the import fail as if it were not installed
    with pytest.raises(FetchError, match=r'needs huggingface_hub: run `pip install "tinyllama\[hub\]"`'):
        find(ADDRESS)
