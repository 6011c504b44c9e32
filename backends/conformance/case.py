"""A case: one op, with all that is needed to make its operands again. Its repr is Python that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ops.op import OPS, Op, Operand
from ops.tensor import Tensor

from .arrays import LARGEST_HALF, drawn, laid_out, poisoned
from .blocks import weight

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Case:
    """`operands()` is the same each time, so a case can be printed, and run again where it failed."""

    op: str
    sizes: Mapping[str, int]  # of every letter in the op's signature
    attrs: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0  # the first of the positions
    scattered: bool = False  # positions in any order, below 2 * start + 10, instead of one after the other
    magnitude: float = 1.0
    values: str = "normal"  # one of arrays.VALUES
    seed: int = 0
    format: str = "F32"  # of weights
    scales: str = "usual"  # of the blocks of quantised weights: one of blocks.SCALES
    kv: str = "float32"  # dtype of caches, and of what is seen of them
    layout: str = "plain"  # of the arrays given to the backend: one of arrays.LAYOUTS
    ints: str = "int64"
    path: str = "kernel"  # or "plan"

    def operands(self) -> list[Array | Tensor]:
        """New arrays: float32, integers, caches of `kv`; weights as Tensors."""
        rng = np.random.default_rng(self.seed)
        return [self._operand(rng, OPS[self.op], operand) for operand in OPS[self.op].inputs]

    def truth(self) -> tuple[list[Array], dict[str, Array]]:
        """The formula in float64: outputs, and the operands that it writes, before they are rounded to a cache's dtype."""
        op, operands = OPS[self.op], self.operands_in_double()
        with np.errstate(all="ignore"):
            outputs = [np.array(output) for output in op.results(op.formula(*operands, **self.attrs))]
        return outputs, {o.name: x for o, x in zip(op.inputs, operands, strict=True) if o.written}

    def operands_in_double(self) -> list[Any]:
        """The same numbers in float64, weights dequantised; integers as they are."""
        return [
            x.dequantize().astype(np.float64)
            if isinstance(x, Tensor)
            else x.astype(np.float64) if x.dtype.kind == "f" else x.copy()
            for x in self.operands()
        ]  # fmt: skip

    def dtype(self, output: Operand) -> np.dtype[Any]:
        """Of an output: that of the operand whose memory it is, or of the first that is not of integers."""
        op = OPS[self.op]
        viewed = op.views.get(output.name)
        source = next(o for o in op.inputs if (o.dtype != "int" if viewed is None else o.name == viewed))
        return np.dtype(self.kv if is_cache(source) else np.float32)

    def _operand(self, rng: np.random.Generator, op: Op, operand: Operand) -> Array | Tensor:
        shape = tuple(self.sizes[d] for d in operand.dims)
        if operand.dtype == "weight":
            return weight(rng, operand.name, shape, self.format, self.scales)
        if operand.dtype == "int":
            x = self._integers(rng, op, operand, shape).astype(self.ints)
        elif operand.name == "freqs":  # as a rotary embedding has them: from one turn a token to one in many
            x = (10.0 ** rng.uniform(2, 6)) ** (-np.arange(shape[0]) / shape[0]) * rng.uniform(0.5, 1, shape)
        else:
            x = drawn(rng, shape, self.values, self.magnitude)
            if self.kv == "float16":
                x = x.clip(-LARGEST_HALF, LARGEST_HALF)
        if operand.dtype == "float":
            x = x.astype(self.kv if is_cache(operand) else np.float32)
        if operand.written:
            x[self.start :] = poisoned((shape[0] - self.start, *shape[1:]), self.kv, self.seed)
        return laid_out(x, self.layout)

    def _integers(self, rng: np.random.Generator, op: Op, operand: Operand, shape: tuple[int, ...]) -> Array:
        """Positions; or rows of the operand whose rows are not the op's own: tokens of a table, ids of rows."""
        if operand.name == "positions":
            if self.scattered:
                return rng.integers(0, 2 * self.start + 10, shape)
            return self.start + np.arange(shape[0])
        tables = [o.dims[0] for o in op.inputs if o is not operand and o.dtype != "int"]
        n_rows = self.sizes[next((d for d in tables if d not in operand.dims), tables[0])]
        ids = rng.integers(0, n_rows, shape)
        ids.flat[rng.integers(ids.size)] = rng.choice([0, n_rows - 1])
        return ids

    def __repr__(self) -> str:
        """Without what is at its default."""
        given = [f"{self.op!r}", f"{dict(self.sizes)!r}"]
        for f in fields(self)[2:]:
            value = getattr(self, f.name)
            default = f.default if f.default is not MISSING else cast(Any, f.default_factory)()
            if value != default:
                given.append(f"{f.name}={dict(value) if isinstance(value, Mapping) else value!r}")
        return f"Case({', '.join(given)})"


def is_cache(operand: Operand) -> bool:
    """A KV cache, or what is seen of one."""
    return operand.dtype == "float" and (operand.written or operand.dims[0] in ("S", "C"))
