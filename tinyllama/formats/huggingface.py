"""Hugging Face's folders: config.json, weights in .safetensors files, and a tokenizer.

    config.json                        sizes and constants
    model.safetensors                  the weights; or, of a large model,
    model.safetensors.index.json       {"weight_map": {"NAME": "model-00001-of-00002.safetensors", ...}} and those files
    tokenizer.json, tokenizer.model    the vocabulary, one of the two at least
    tokenizer_config.json, generation_config.json, added_tokens.json, chat_template.jinja    where there are any

Which architectures and variants of them are read, and what is done to their weights: docs/model-folders.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ops.errors import FormatError, ModelError
from ops.tensor import Tensor

from . import huggingface_falcon, huggingface_llama
from .huggingface_falcon import Falcon
from .huggingface_llama import Llama
from .huggingface_tokenizer import tokenizer_metadata
from .huggingface_weights import Weight, reordered
from .json_object import JsonObject, read_object
from .model_file import ModelFile
from .other_files import is_there
from .safetensors import SafetensorsFile, read_safetensors

# Class of transformers, as config.json names it -> what reads it, and the name of its embedding
FAMILIES: dict[str, tuple[Callable[[JsonObject], Llama | Falcon], str]] = {
    "LlamaForCausalLM": (partial(Llama, arch="llama"), huggingface_llama.EMBEDDING),
    "LLaMAForCausalLM": (partial(Llama, arch="llama"), huggingface_llama.EMBEDDING),  # as it was first called
    "MistralForCausalLM": (partial(Llama, arch="llama"), huggingface_llama.EMBEDDING),
    "Qwen2ForCausalLM": (partial(Llama, arch="qwen2"), huggingface_llama.EMBEDDING),
    "FalconForCausalLM": (partial(Falcon, arch="falcon"), huggingface_falcon.EMBEDDING),
    "RWForCausalLM": (partial(Falcon, arch="falcon"), huggingface_falcon.EMBEDDING),
}
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # general.file_type of GGUF
COMPUTED = ".rotary_emb.inv_freq"  # stored by transformers of 2023, and what `rope_freqs` is computed to
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_huggingface(folder: Path, *, mmap: bool = True) -> ModelFile:
    """Open a folder. Its tensors are views of the mapped files; where rows have another order here, they are made on access.

    Raises FormatError for what is missing or damaged, ModelError for a model that is sound but not supported.
    """
    config = read_object(folder / "config.json")
    read_family, embedding = FAMILIES[_architecture(config)]
    if "quantization_config" in config:
        method = config.object("quantization_config").text("quant_method", default="unknown")
        raise ModelError(
            f"{config.source}: the weights are quantised ({method[:80]!r}), which is not read here; take the model in BF16, "
            "F16 or F32, or a GGUF file of it"
        )
    family = read_family(config)
    files = _Stored(folder, mmap)
    table = files.tensor(Weight(embedding, "token_embd.weight", ()))
    if len(table.shape) != 2 or table.shape[1] != family.n_embd:
        raise config.error(f"hidden_size is {family.n_embd}, but {embedding} has the shape {list(table.shape)}")
    if family.n_layer > len(files):  # before a damaged number becomes a long loop
        raise config.error(f"{family.n_layer} layers are too many for the {len(files)} tensors of the folder")
    n_vocab = table.shape[0]
    weights = list(family.weights(n_vocab))
    files.check_read_by(weights)
    tensors = {w.name: files.tensor(w) for w in weights if not w.optional or w.stored in files}
    metadata: dict[str, Any] = {
        "general.name": folder.resolve().name,
        "general.file_type": FILE_TYPES[table.format.name],
        **family.metadata,
        **tokenizer_metadata(folder, config, n_vocab),
    }
    return ModelFile(folder, "Hugging Face folder", metadata, {**tensors, **family.made}, mmap, files.check)


def _architecture(config: JsonObject) -> str:
    names = config.values.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name in FAMILIES:
            return name
    raise ModelError(
        f"{config.source}: the model's architecture is {str(names)[:80]!r}, which is not supported; supported are "
        f"{', '.join(FAMILIES)}"
    )


class _Stored:
    """All tensors of a folder, in one file or several."""

    def __init__(self, folder: Path, mmap: bool) -> None:
        self._folder = folder
        self._files: dict[str, SafetensorsFile] = {}  # by the file's name
        if is_there(folder / WEIGHTS):
            self._files[WEIGHTS] = read_safetensors(folder / WEIGHTS, mmap=mmap)
            self._place = dict.fromkeys(self._files[WEIGHTS].entries, WEIGHTS)
        elif is_there(folder / INDEX):
            self._place = _weight_map(read_object(folder / INDEX))
            for name in sorted(set(self._place.values())):
                if not is_there(folder / name):
                    raise FormatError(f"{folder}: the folder lacks {name}, which {INDEX} names; download it too")
                self._files[name] = read_safetensors(folder / name, mmap=mmap)
        else:
            raise _no_weights(folder)

    def __contains__(self, stored: str) -> bool:
        return stored in self._place

    def __len__(self) -> int:
        return len(self._place)

    def check(self) -> None:
        for file in self._files.values():
            file.check()

    def check_read_by(self, weights: list[Weight]) -> None:
        """ModelError: there is a tensor that the model does not read, so that its logits would not be what was trained."""
        known = {weight.stored for weight in weights} | {"lm_head.weight"}  # which some store though it is tied
        unread = [name for name in self._place if name not in known and not name.endswith(COMPUTED)]
        if unread:
            raise ModelError(
                f"{self._folder}: there is a tensor {min(unread)[:80]!r}, which the architectures supported here do not read: "
                "this is a variant that is not supported"
            )

    def tensor(self, weight: Weight) -> Tensor:
        """FormatError: it is missing, of a dtype that is not read, or of another shape than the config makes it (if not ())."""
        if weight.stored not in self:
            raise FormatError(
                f"{self._folder}: there is no tensor {weight.stored}, which the model of config.json has; "
                "download all its .safetensors files and their index again"
            )
        file = self._files[self._place[weight.stored]]
        if weight.stored not in file.entries:
            raise file.error(f"the file lacks the tensor {weight.stored}, which {INDEX} places there; download both again")
        tensor = file.tensor(weight.stored, weight.name)
        if weight.shape and tensor.shape != weight.shape:
            raise file.error(
                f"tensor {weight.stored} has the shape {list(tensor.shape)}, but by config.json it is {list(weight.shape)}"
            )
        return tensor if weight.order is None else reordered(tensor, weight.order)


def _weight_map(index: JsonObject) -> dict[str, str]:
    places = index.object("weight_map").values
    for tensor, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors") or "\0" in file:
            raise index.error(f"{tensor[:80]!r} is in {str(file)[:80]!r}, which is no .safetensors file of this folder")
    return places


def _no_weights(folder: Path) -> FormatError:
    if any(folder.glob("pytorch_model*.bin")):
        return FormatError(
            f"{folder}: the weights are only there as pytorch_model.bin, which is not read in these folders; load them with "
            "transformers and save them with save_pretrained, which writes .safetensors files"
        )
    if shard := next(folder.glob("model-*-of-*.safetensors"), None):
        return FormatError(f"{folder}: {shard.name} is a part of a model, but {INDEX} is missing; download it too")
    return FormatError(f"{folder}: the folder holds neither {WEIGHTS} nor {INDEX}, so there are no weights; download them too")
