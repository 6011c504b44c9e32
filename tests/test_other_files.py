"""A model in several files, one of which is a folder, a pipe or a link to nowhere: that is said, and nothing waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from writers import huggingface
from writers.ggml import GGMF, write_ggml
from writers.llama2c import write_llama2c
from writers.meta import of_300_tokens, write_meta
from writers.tiny import TinyLlama

from ops.errors import FormatError
from tinyllama.formats import open_model_file


def hugging_face(folder: Path) -> Path:
    huggingface.write_llama(folder, TinyLlama(), n_shards=2)
    huggingface.set_keys(folder, "generation_config.json", eos_token_id=2)
    return folder


def one_file_of_hugging_face(folder: Path) -> Path:
    return huggingface.write_llama(folder, TinyLlama())


def meta(folder: Path) -> Path:
    write_meta(folder, of_300_tokens(TinyLlama()), 2)
    return folder


def split_gguf(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=6)
    for name, weight in TinyLlama().weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(folder.iterdir())


def ggml_in_parts(folder: Path) -> Path:
    write_ggml(folder / "model.bin", of_300_tokens(TinyLlama(n_embd=128, n_ff=384)), GGMF, n_parts=2, n_mult=128)
    return folder / "model.bin"


def llama2c(folder: Path) -> Path:
    write_llama2c(folder / "model.bin", TinyLlama(), 1)
    return folder / "model.bin"


MODELS: list[tuple[Callable[[Path], Path], str]] = [
    (hugging_face, "config.json"),
    (hugging_face, "model.safetensors.index.json"),
    (hugging_face, "model-00002-of-00002.safetensors"),
    (hugging_face, "tokenizer.json"),
    (hugging_face, "generation_config.json"),
    (hugging_face, "tokenizer.model"),  # not there at first, as the next one
    (hugging_face, "chat_template.jinja"),
    (one_file_of_hugging_face, "model.safetensors"),
    (meta, "params.json"),
    (meta, "consolidated.00.pth"),
    (meta, "consolidated.01.pth"),
    (meta, "tokenizer.model"),
    (split_gguf, "model-00002-of-00004.gguf"),
    (ggml_in_parts, "model.bin.1"),
    (llama2c, "tokenizer.bin"),
]


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": listening,
    "a device": lambda path: path.symlink_to(os.devnull),
    "a link that leads to no file": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a link that leads to no file, but to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes with names nor links for everybody")
@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize(("write", "name"), MODELS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_what_is_no_file_is_called_by_its_name(write: Callable[[Path], Path], name: str, instead: str, tmp_path: Path) -> None:
    model, file = write(tmp_path), tmp_path / name
    open_model_file(model)
    file.unlink(missing_ok=True)
    INSTEAD[instead](file)
    with pytest.raises(FormatError) as caught:
        open_model_file(model)
    not_a_file = "" if "link" in instead else ", not a file"
    assert str(caught.value) == f"{file}: this is {instead.partition(',')[0]}{not_a_file}; put the model's file there"
