"""A record of a run: for each op what it made, how large that was, and how fast it went."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import Event
from ops.errors import OptionError
from ops.op import Cost


class Trace:
    """An observer that writes a line of JSON for all that an op made, also of a run that fails: then up to the op where it did.

    Keys: step, name (llama.cpp's, so that the lines lie beside those of its eval-callback), op, layer, backend, inputs
    (names), input_shapes, shape, mean and absmax (of the finite values; null if there are none), nonfinite (how many are
    not), seconds, flops, bytes, gflops (GFLOP/s), gbps (GB/s). Of an op with several outputs the first line has what it took,
    and the others 0, so that sums over lines are right.

    A regular file appears under its name when the trace ends; a pipe or a device is written to as it goes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: Any = None
        self._step = -1

    def __enter__(self) -> Trace:
        if not self._path.name or self._path.is_dir():
            raise OptionError(f"cannot write the trace '{self._path}': it is a directory; name a file")
        target = self._path.resolve()  # a link stays a link
        is_regular = target.is_file() or not target.exists()
        self._partial = target.with_name(f"{target.name}.{os.getpid()}.part") if is_regular else target
        self._target = target
        with self._told_if_it_fails():
            self._file = self._partial.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._told_if_it_fails():
                self._file.close()
                if self._partial != self._target:
                    os.replace(self._partial, self._target)
        finally:
            if self._partial != self._target:
                self._partial.unlink(missing_ok=True)

    @contextmanager
    def _told_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OptionError(f"cannot write the trace {self._path}: {error.strerror or error}") from error

    def __call__(self, event: Event) -> None:
        node = event.node
        self._first = self._first or node
        self._step += node is self._first
        cost, seconds = event.cost, event.seconds
        for value, output in zip(node.outputs, event.outputs, strict=True):
            self._write(event, value.name, event.backend.download(output), cost, seconds)
            cost, seconds = Cost(0.0, 0.0), 0.0

    def _write(self, event: Event, name: str, values: NDArray[Any], cost: Cost, seconds: float) -> None:
        node, finite = event.node, values[np.isfinite(values)]
        record = {
            "step": self._step,
            "name": name,
            "op": node.op.name,
            "layer": node.layer,
            "backend": event.backend.name,
            "inputs": [v.name for v in node.inputs],
            "input_shapes": [list(x.shape) for x in event.operands],
            "shape": list(values.shape),
            "mean": float(finite.mean(dtype=np.float64)) if finite.size else None,
            "absmax": float(np.abs(finite).max()) if finite.size else None,
            "nonfinite": int(values.size - finite.size),
            "seconds": seconds,
            "flops": cost.flops,
            "bytes": cost.bytes,
            "gflops": cost.flops / (seconds or 1e-9) / 1e9,  # a clock of coarse ticks may show none
            "gbps": cost.bytes / (seconds or 1e-9) / 1e9,
        }
        with self._told_if_it_fails():
            self._file.write(json.dumps(record) + "\n")
