"""One file of spring 2023, read from its beginning to its end: what it says of itself, and where its tensors lie.

    magic u32 "ggml", "ggmf" or "ggjt" | version u32, but for "ggml"
    n_vocab | n_embd | n_mult | n_head | n_layer | n_rot | ftype, each i32
    each token    length i32, text | its score f32, but for "ggml"
    each tensor   n_dims i32 | length of its name i32 | type i32 | dimensions i32, contiguous first | name
                  in ggjt: padding to a multiple of 32 bytes from the file's beginning
                  its data

All numbers are little-endian, so a magic's letters lie in the file from the last to the first. Nothing says how many tensors
there are: they go on until the file ends. Source: llama.cpp's `llama_file_loader` (llama-util.h, llama.cpp of May 2023) and
convert_llama_ggml_to_gguf.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct, unpack
from typing import BinaryIO

from ops.blocks import BlockFormat
from ops.errors import FormatError

from .ggml_blocks import Stored, stored_as

MAGICS = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt"}
VERSIONS = {"ggmf": (1,), "ggjt": (1, 2, 3)}
ALIGNMENT = 32  # of the data in ggjt
MAX_TEXT_BYTES = 4096  # of a token or a name, as llama.cpp's own converter has it
MAX_TOKENS = 2**18  # the largest vocabularies of 2023 had some 60,000; each costs more memory here than in a damaged file

_INT, _FLOAT = Struct("<i"), Struct("<f")


@dataclass(frozen=True)
class Sizes:
    """The header's numbers; all parts of a model have the same."""

    n_vocab: int
    n_embd: int
    n_mult: int
    n_head: int
    n_layer: int
    n_rot: int
    ftype: int


@dataclass(frozen=True)
class Place:
    """Where a tensor's data lies in a file. `dims` has the contiguous dimension first."""

    dims: tuple[int, ...]
    stored: Stored
    start: int

    @property
    def n_rows(self) -> int:
        return prod(self.dims[1:])

    @property
    def row_bytes(self) -> int:
        return self.stored.format.row_bytes(self.dims[0])

    @property
    def end(self) -> int:
        return self.start + self.n_rows * self.row_bytes

    @property
    def format(self) -> BlockFormat:
        return self.stored.format


@dataclass(frozen=True)
class GgmlFile:
    """A file, or one part of a model in several."""

    path: Path
    container: str  # "ggml", "ggmf" or "ggjt"
    version: int  # 0 for "ggml"
    sizes: Sizes
    texts: list[bytes]  # of the tokens
    scores: list[float]  # of the tokens; empty for "ggml"
    places: dict[str, Place]  # by the tensor's name in the file

    @property
    def format(self) -> str:
        return f"{self.container} v{self.version}" if self.version else self.container

    def error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.path}: {sentence}")

    def shrunk(self) -> FormatError:
        return self.error("the file has become shorter while it was opened; leave a model's file alone until it is loaded")


def scan(path: Path) -> GgmlFile:
    """Read all but the tensors' data. FormatError for whatever is wrong with it, OSError if the file cannot be read."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        container, version = reader.kind()
        sizes = reader.sizes()
        texts, scores = reader.tokens(sizes.n_vocab, scored=container != "ggml")
        return GgmlFile(path, container, version, sizes, texts, scores, reader.tensors(container, version))


class _Reader:
    """Reads in order; what would leave the file is a FormatError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0  # position of the next byte
        self.part = "the header"  # for errors: where in the file we are

    def error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.path}: {sentence}")

    def take(self, n_bytes: int) -> bytes:
        self.at += n_bytes
        if self.at <= self.size:
            taken = self.file.read(n_bytes)
            if len(taken) == n_bytes:
                return taken
        raise self.error(
            f"the file has {self.size} bytes and ends within {self.part}, which needs {self.at}; "
            "it is cut short or damaged: download it again"
        )

    def number(self) -> int:
        n: int = _INT.unpack(self.take(4))[0]
        return n

    def text(self, n_bytes: int, what: str) -> bytes:
        if not 0 <= n_bytes <= MAX_TEXT_BYTES:
            raise self.error(f"{self.part} has a {what} of {n_bytes} bytes, but {MAX_TEXT_BYTES} are the limit; it is damaged")
        return self.take(n_bytes)

    def kind(self) -> tuple[str, int]:
        container = MAGICS.get(self.take(4))
        if container is None:
            raise self.error("this is no ggml, ggmf or ggjt file: it begins with other letters")
        if container == "ggml":
            return container, 0
        version, known = self.number(), VERSIONS[container]
        if version not in known:
            these = " to ".join(f"v{v}" for v in sorted({known[0], known[-1]}))
            raise self.error(f"this is {container} version {version}, and there were only {these}; the file is damaged")
        return container, version

    def sizes(self) -> Sizes:
        sizes = Sizes(*unpack("<7i", self.take(28)))
        for name, value in vars(sizes).items():
            if value < (0 if name == "ftype" else 1):
                raise self.error(f"{name} is {value}; the file is damaged: download it again")
        if sizes.n_embd % sizes.n_head:
            raise self.error(
                f"n_embd = {sizes.n_embd} is no multiple of n_head = {sizes.n_head}; the file is damaged, or no LLaMA"
            )
        return sizes

    def tokens(self, n_vocab: int, *, scored: bool) -> tuple[list[bytes], list[float]]:
        if n_vocab > MAX_TOKENS:
            raise self.error(f"n_vocab is {n_vocab}, but {MAX_TOKENS} tokens are the limit; the file is damaged")
        self.part = f"the vocabulary of {n_vocab} tokens"
        texts, scores = [], []
        for _ in range(n_vocab):
            texts.append(self.text(self.number(), "token"))
            if scored:
                scores.append(_FLOAT.unpack(self.take(4))[0])
        return texts, scores

    def tensors(self, container: str, version: int) -> dict[str, Place]:
        places: dict[str, Place] = {}
        while self.at < self.size:
            self.part = f"the description of tensor {len(places)}"
            n_dims, n_name, number = self.number(), self.number(), self.number()
            if not 1 <= n_dims <= 2:
                raise self.error(f"{self.part} has {n_dims} dimensions, but 1 or 2 are possible; the file is damaged")
            dims = tuple(self.number() for _ in range(n_dims))
            if min(dims) < 1:
                raise self.error(f"{self.part} has the shape {list(dims)}; the file is damaged")
            name = self.text(n_name, "name").decode("utf-8", "backslashreplace")
            if name in places:
                raise self.error(f"the tensor {name!r} occurs twice; the file is damaged")
            if container == "ggjt":
                self.take(-self.at % ALIGNMENT)
            self.part = f"the data of tensor {name!r}"
            place = Place(dims, stored_as(number, version if container == "ggjt" else 0, self.path, name), self.at)
            if dims[0] % place.format.block_size:
                raise self.error(
                    f"tensor {name!r}: rows of {dims[0]}, but {place.format} takes a multiple of {place.format.block_size}"
                )
            self.skip(place.end)
            places[name] = place
        return places

    def skip(self, end: int) -> None:
        if end > self.size:
            self.take(end - self.at)  # raises
        self.file.seek(end)
        self.at = end
