"""A model: config, weights, tokenizer and graph. They do not change; what a generation changes is in a Context."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from backends.base import Backend, Coverage, Observer, Options
from backends.registry import get_backend
from ops.errors import OptionError
from ops.graph import Graph
from ops.tensor import Tensor

from .build import build
from .checks import whole_number
from .context import KV_DTYPE, Context
from .formats import open_model_file
from .formats.model_file import ModelFile
from .generation import Generation
from .models import find
from .offload import Placement
from .sampling import Sampling
from .tokenizer import Tokenizer


class Model:
    """Made by `Model.load`. Safe to share: contexts in several threads may run on one model."""

    def __init__(self, file: ModelFile, backend: Backend, n_ctx: int | None = None) -> None:
        built = build(file)
        self.file = file
        self.config = built.config
        self.graph = built.graph
        self.leaves = built.leaves
        self.backend = backend
        self.placement = Placement.all_on(backend, self.config.n_layer)
        self.n_ctx = n_ctx or self.config.n_ctx_train
        self.load_seconds = 0.0  # what `load` took

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] = "smollm2",
        *,
        backend: str | Backend = "numpy",
        n_gpu_layers: int | None = None,
        n_ctx: int | None = None,
        mmap: bool = True,
        n_threads: int | None = None,
        weights_memory: int | None = None,
        fuse: bool = True,
    ) -> Model:
        """Open a model: a name that `tinyllama pull` knows, a path, or hf:OWNER/REPO/FILE.gguf.

        backend: a name, `module:Class`, or a Backend; n_gpu_layers: layers on the backend's device (numpy has none, so there
        it changes nothing); n_ctx: places of a context, None or 0 for the model's own; mmap: False reads the file into memory;
        n_threads: None for all cores; weights_memory: bytes that may hold weights in float32, None for what is free, 0 to
        convert at every use; fuse: False runs primitive ops only, so that every value of the graph can be seen.

        Raises TinyLlamaError, of which FormatError and ModelError for what is wrong with the file.
        """
        for name, value, low in (
            ("n_ctx", n_ctx, 0),
            ("weights_memory", weights_memory, 0),
            ("n_threads", n_threads, 1),
            ("n_gpu_layers", n_gpu_layers, -1),
        ):
            if value is not None:
                whole_number(name, value, low)
        options = Options(n_threads=n_threads, weights_memory=weights_memory, fuse=fuse)
        if isinstance(backend, str):
            backend = get_backend(backend, options)
        elif not isinstance(backend, Backend):
            raise OptionError(f"backend = {backend!r}: expected a name, module:Class, or a Backend")
        elif options != Options():
            raise OptionError("n_threads, weights_memory and fuse are the backend's: give them to the one you made")
        path = find(name_or_path)
        began = perf_counter()
        model = cls(open_model_file(path, mmap=mmap), backend, n_ctx)
        model.load_seconds = perf_counter() - began
        return model

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's, by GGUF's key names."""
        return self.file.metadata

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.file.tensors

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_metadata(self.metadata)

    def tokenize(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Token ids. add_bos: begin with the bos token (None: if the file says so); parse_special: `<|im_end|>` is a token."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of token ids; `special` shows control tokens too. TokenError for an id outside the vocabulary."""
        return self.tokenizer.decode(ids, special=special)

    def context(self, *, n_ctx: int | None = None, n_batch: int = 512) -> Context:
        """A new, empty context. n_ctx: None for the model's; n_batch: tokens of a prompt computed at once."""
        return Context(self, n_ctx=n_ctx, n_batch=n_batch)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        n_predict: int = 128,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        context: Context | None = None,
        observe: Observer | None = None,
        progress: Callable[[int], object] = lambda n_read: None,
        **settings: Any,
    ) -> Generation:
        """Continue a prompt: an iterator of text pieces, never half a character.

        n_predict: tokens at most, -1 for no limit; stop: texts that end it (and are not given out); context: go on in this one,
        of which the longest common beginning with the prompt is reused; progress: called as the prompt is read, with the number
        of tokens. Settings are those of Sampling: temp=0, top_k=40, seed=1 ... Afterwards the Generation tells its `.tokens`,
        `.stop_reason` and `.timings`.
        """
        if sampling is not None and settings:
            raise OptionError("give either sampling=Sampling(...) or its settings, not both")
        if not isinstance(prompt, (str, list, tuple, range, np.ndarray)):
            raise OptionError(f"the prompt must be text or a list of token ids, not {type(prompt).__name__}")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise OptionError(f"sampling = {sampling!r}: expected a Sampling")
        if context is not None and not isinstance(context, Context):
            raise OptionError(f"context = {context!r}: expected a Context")
        if context is not None and context.model is not self:
            raise OptionError("this context belongs to another model: make one with this model's context()")
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        return Generation(
            context if context is not None else self.context(),
            tokens,
            n_predict=n_predict,
            sampling=sampling or Sampling.of(**settings),
            stop=stop,
            ignore_eos=ignore_eos,
            observe=observe,
            progress=progress,
        )

    def fused_graph(self) -> Graph:
        """The graph as the backend runs it."""
        return self.backend.fused(self.graph)

    def coverage(self) -> Coverage:
        """How the nodes of the graph are computed: by a backend's kernel, decomposed, or on the host."""
        parts = (backend.coverage(self.graph.part(nodes)) for backend, nodes in self.placement.runs(self.graph))
        return sum(parts, Coverage())

    def caches(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The graph's caches: leaf's name -> (layer, shape of one place)."""
        writers = {v: n for n in self.graph.nodes for v in n.inputs if v.shape[0] == "C"}
        return {v.name: (int(n.layer or 0), tuple(map(int, v.shape[1:]))) for v, n in writers.items()}

    def kv_bytes(self, places: int) -> int:
        """Bytes of a KV cache of so many places."""
        return sum(places * int(np.prod(shape)) * KV_DTYPE.itemsize for _, shape in self.caches().values())
