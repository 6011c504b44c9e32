"""A model: config, weights, tokenizer and graph. They do not change; what a generation changes is in a Context."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any, Literal

import numpy as np

from backends.base import Backend, Coverage, Observer, Options
from ops.errors import OptionError
from ops.graph import Graph
from ops.tensor import Tensor

from .build import build
from .chat import prompt_tokens
from .chat_template import chat_format
from .checks import truth, whole_number
from .context import Context
from .device_memory import Demand, Needs
from .formats import open_model_file
from .formats.model_file import ModelFile
from .generation import Generation
from .kv_cache import KvTypes, cache_bytes, cache_dtypes, cache_shapes
from .models import find
from .offload import Placement
from .sampling import Sampling
from .tokenizer import Tokenizer
from .wish import Wish, one_device, panels_folder, tuning_file


class Model:
    """Made by `Model.load`. Safe to share: contexts in several threads may run on one model."""

    def __init__(self, file: ModelFile, demand: Demand, placement: Placement, backend: Backend) -> None:
        self.file = file
        self.config = demand.built.config
        self.graph = demand.built.graph
        self.leaves = demand.built.leaves
        self.demand = demand
        self.placement = placement
        self.backend = backend  # the one asked for; of a map, that of the last layer
        self.n_ctx = demand.n_ctx
        self.n_batch = demand.n_batch
        self.cache_dtypes = cache_dtypes(self.caches(), placement.layers, demand.types)
        self.load_seconds = 0.0  # what `load` took
        self.auto: str | None = None  # of a backend that `auto` chose: why it is this one
        self.is_placed = False  # True: a context was made, so that the devices hold the weights

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] = "smollm2",
        *,
        backend: str | Backend = "auto",
        n_gpu_layers: int | Literal["all", "auto"] | None = None,
        layers: str | None = None,
        device: int | str | None = None,
        main_gpu: int | None = None,
        device_memory: int | None = None,
        device_features: str | None = None,
        type_k: Literal["f16", "f32"] | None = None,
        type_v: Literal["f16", "f32"] | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        mmap: bool = True,
        n_threads: int | None = None,
        weights_memory: int | None = None,
        fuse: bool = True,
        precise: bool = False,
        repack: bool = True,
    ) -> Model:
        """Open a model: a name that `tinyllama pull` knows, a path, or hf:OWNER/REPO/FILE.gguf.

        backend: a name, `module:Class`, or a Backend; "auto": cupy if it finds a GPU, else opencl if it finds a device, else
        numpy.
        n_gpu_layers: the last so many layers on the backend's device, the rest on numpy; more than the model has, -1 or "all":
        everything; "auto": as many as its memory holds; None: "auto" on a backend that was found by "auto", else "all". Without
        effect on numpy, which has no device.
        layers: instead of that a map of any split, "numpy:0-9,opencl:10-29", "opencl@1:5", "numpy:output".
        device (or main_gpu): which of the backend's devices, by number or a part of its name; device_memory: bytes it may use;
        device_features: the kernels for another kind of device than the one found.
        type_k, type_v: of the KV cache; None for what each backend prefers.
        n_ctx: places of a context, None or 0 for the model's own (beyond config.n_swa, its sliding window, a token sees what it
        was not trained to see); n_batch: tokens of a prompt computed at once.
        mmap: False reads the file into memory; n_threads: None for all cores; weights_memory: bytes that may hold weights in
        float32, None for what is free, 0 to convert at every use; fuse: False runs primitive ops only, so that every value of
        the graph can be seen; precise: True keeps activations in float32 where a backend would round them to 8 bits; repack:
        False keeps weights as they are mapped where a backend would lay them out anew.

        Raises TinyLlamaError, of which FormatError and ModelError for what is wrong with the file, BackendError for a device
        that is not there, or too small: then nothing was put there.
        """
        for name, value, low in (
            ("n_ctx", n_ctx, 0),
            ("weights_memory", weights_memory, 0),
            ("device_memory", device_memory, 0),
            ("n_threads", n_threads, 1),
        ):
            if value is not None:
                whole_number(name, value, low)
        for name, value in (("mmap", mmap), ("fuse", fuse), ("precise", precise), ("repack", repack)):
            truth(name, value)
        n_batch = whole_number("n_batch", n_batch, 1)
        types = KvTypes(type_k, type_v)
        options = Options(
            n_threads=n_threads,
            weights_memory=weights_memory,
            fuse=fuse,
            device=one_device(device, main_gpu),
            device_memory=device_memory,
            device_features=device_features,
            precise=precise,
            repack=repack,
            panels_folder=panels_folder() if repack and not isinstance(backend, Backend) else None,
            tuning_file=tuning_file() if not isinstance(backend, Backend) else None,
        )
        wish = Wish.of(backend, options, n_gpu_layers, layers)
        path = find(name_or_path)
        began = perf_counter()
        file = open_model_file(path, mmap=mmap)
        built = build(file)
        demand = Demand(built, types, n_ctx or built.config.n_ctx_train, n_batch)
        model = cls(file, demand, wish.placement(demand), wish.backend)
        model.auto = wish.auto
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

    def context(self, *, n_ctx: int | None = None, n_batch: int | None = None) -> Context:
        """A new, empty context. n_ctx: places; n_batch: tokens of a prompt computed at once; None for the model's own."""
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

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        n_predict: int = -1,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        context: Context | None = None,
        **settings: Any,
    ) -> Generation:
        """Answer a conversation of {"role": ..., "content": ...} messages: the reply's pieces, as `generate` gives them.

        "".join(model.chat([{"role": "user", "content": "Why is the sky blue?"}])) is the reply.
        chat_template: a name of chat_formats.FORMATS ("alpaca", "vicuna" ...) or a Jinja text; None for the one in the model's
        file. A named format brings texts that end a reply; `stop` adds more. In Alpaca's format a user's message may have an
        "input" too. The rest is as for `generate`; with the same context, a conversation that has grown is not read anew.

        ModelError: the file has no chat template, or it refuses the conversation; OptionError: no format of that name, or what
        is given are no messages.
        """
        form = chat_format(chat_template, self.metadata)
        return self.generate(
            prompt_tokens(messages, form, self.tokenizer),
            n_predict=n_predict,
            sampling=sampling,
            stop=form.stops(stop),
            context=context,
            **settings,
        )

    def fused_graph(self) -> Graph:
        """The graph as the backends run it, each its part."""
        parts = self.placement.parts(self.graph)
        return replace(self.graph, nodes=[n for backend, part in parts for n in backend.fused(part).nodes])

    def coverage(self) -> Coverage:
        """How the nodes of the graph are computed: by a backend's kernel, decomposed, or on the host."""
        return sum((backend.coverage(part) for backend, part in self.placement.parts(self.graph)), Coverage())

    def memory_needed(self) -> dict[Backend, Needs]:
        """Bytes on each device of the placement: weights, the KV cache of a context, scratch."""
        return self.demand.on_devices(self.placement)

    def caches(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The graph's caches: leaf's name -> (layer, shape of one place)."""
        return cache_shapes(self.graph)

    def kv_bytes(self, places: int) -> int:
        """Bytes of a KV cache of so many places."""
        return sum(cache_bytes(self.caches(), self.cache_dtypes, places).values())
