"""What an operation is: a signature and a formula.

    @op("x[T, n], weight:weight[m, n] -> y[T, m]", flops="2*T*m*n")
    def matmul(x, weight):
        \"\"\"y = x @ weight.T\"\"\"
        return x @ dense(weight, x.dtype).T

Called on arrays, an op computes its formula. Called on Values, it records a Node. So a model written with ops runs line by
line in a debugger, and the very same lines build the graph that a backend executes.

The signature is the one description of an op. Equal letters are equal sizes; `tokens:int[T]` holds integers; `w:weight[m, n]`
may lie in quantised blocks; `cache![C, k, d]` is written, and no other operand may change. A size of an output may be an
expression (`y[T, h*d]`), an attribute, or a new letter, which then stays symbolic. An output has the dtype of the first float
operand, or, if it is a view, of the operand whose memory it is. Behind the arrow may stand several outputs; the formula then
returns a tuple. From the signature come shape inference and its errors, the table in the docs, and the cases that tests draw.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from .errors import ShapeError
from .graph import Dim, Shape, Value

OPS: dict[str, Op] = {}  # every op by its name

Array = Any  # numpy's, of whichever float; or a Value, which records what is done with it
Formula = Callable[..., Any]
_OPERAND = re.compile(r"(?P<name>\w+)(?P<written>!?)(?::(?P<dtype>\w+))?\[(?P<dims>[^\]]*)\]")


@dataclass(frozen=True)
class Operand:
    """`x[T, n]`: name and sizes; `tokens:int[T]`: with a dtype; `cache![C, k, d]`: written by the op."""

    name: str
    dims: tuple[str, ...]
    dtype: str  # "float", "int" or "weight"
    written: bool

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float" else f":{self.dtype}"
        return f"{self.name}{'!' if self.written else ''}{dtype}[{', '.join(self.dims)}]"


@dataclass(frozen=True)
class Cost:
    """What one application needs at least: floating-point operations, and bytes moved to and from memory."""

    flops: float
    bytes: float


@dataclass(frozen=True, eq=False)
class Op:
    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    formula: Formula  # numpy, dtype-generic: in float64 it is the truth for every backend
    attrs: tuple[str, ...]  # the formula's keyword-only parameters
    where: CodeType | None  # what equal letters cannot say, such as h % k == 0
    where_text: str
    flops: CodeType  # an expression in the sizes
    touches: Mapping[str, CodeType]  # operand or output -> the fraction of its bytes read or written, where not all
    views: Mapping[str, str]  # output -> the operand whose memory it is, seen with another shape; the others are new memory
    fused: bool  # the formula is made of other ops

    @property
    def signature(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"

    @property
    def output(self) -> Operand:
        """The first of them, and nearly always the only one."""
        return self.outputs[0]

    def __call__(self, *operands: Any, name: str | Sequence[str] = "", **attrs: Any) -> Any:
        """One result, or a tuple of several. `name` is for the values of a graph: of several outputs, one for each."""
        graph = next((x.graph for x in operands if isinstance(x, Value)), None)
        if graph is None or (self.fused and graph.written_out):
            return self.formula(*operands, **attrs)
        return self.returned(graph.append(self, operands, attrs, self._names(name)))

    def results(self, returned: Any) -> tuple[Any, ...]:
        """What the formula or a kernel has returned, as a tuple also if it is one."""
        return tuple(returned) if len(self.outputs) > 1 else (returned,)

    def returned(self, results: Sequence[Any]) -> Any:
        """The other way round: what a formula or a kernel returns that has these results."""
        return tuple(results) if len(self.outputs) > 1 else results[0]

    def infer(self, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
        """Shapes of the outputs. ShapeError names the op, the operand and both shapes."""
        self._check_call(len(shapes), attrs)
        sizes = self.sizes(shapes, attrs)
        known = {k: v for k, v in sizes.items() if isinstance(v, int)}
        if self.where is not None and _knows(self.where, known) and not eval(self.where, {}, known):
            told = ", ".join(f"{k}={known[k]}" for k in self.where.co_names)
            raise ShapeError(f"{self.name}: needs {self.where_text}, but {told}")
        return tuple(tuple(_size(dim, sizes, known) for dim in output.dims) for output in self.outputs)

    def sizes(self, shapes: Sequence[Shape], attrs: Mapping[str, Any]) -> dict[str, Dim]:
        """The size of every letter of the signature, given the operands' shapes."""
        sizes: dict[str, Dim] = {k: v for k, v in attrs.items() if isinstance(v, int)}
        for operand, shape in zip(self.inputs, shapes, strict=True):
            before = dict(sizes)
            if len(shape) != len(operand.dims) or any(
                sizes.setdefault(dim, size) != size for dim, size in zip(operand.dims, shape, strict=True)
            ):
                wanted = ", ".join(f"{d}={before[d]}" if d in before else d for d in operand.dims)
                found = ", ".join(map(str, shape))
                raise ShapeError(f"{self.name}: {operand.name} has shape [{found}], expected [{wanted}]")
        return sizes

    def cost(
        self, operands: Sequence[Any], outputs: Sequence[Any], nbytes: Callable[[Any], int] = lambda x: int(x.nbytes)
    ) -> Cost:
        """FLOPs and bytes of one application to these arrays (anything with .shape); `nbytes` tells an array's size."""
        sizes = self.sizes([x.shape for x in operands], {})
        made = list(zip(self.outputs, outputs, strict=True))
        for output, array in made:
            sizes |= {dim: size for dim, size in zip(output.dims, array.shape, strict=True) if dim.isidentifier()}
        moved = 0.0
        for operand, array in [*zip(self.inputs, operands, strict=True), *made]:
            fraction = self.touches.get(operand.name)
            moved += nbytes(array) * (1.0 if fraction is None else eval(fraction, {}, sizes))
        return Cost(float(eval(self.flops, {}, sizes)), moved)

    def flops_of(self, shapes: Sequence[Shape], **symbols: int) -> float:
        """Floating-point operations for shapes with symbolic sizes, given what these are: T=1, S=512."""
        known = [tuple(symbols.get(d, d) if isinstance(d, str) else d for d in shape) for shape in shapes]
        return float(eval(self.flops, {}, {**self.sizes(known, {}), **symbols}))

    def _names(self, name: str | Sequence[str]) -> Sequence[str]:
        """For the outputs' values: those given, or the op's, of several outputs `op_output`."""
        if not isinstance(name, str):
            return name
        name = name or self.name
        return [name] if len(self.outputs) == 1 else [f"{name}_{output.name}" for output in self.outputs]

    def _check_call(self, n_operands: int, attrs: Mapping[str, Any]) -> None:
        if n_operands != len(self.inputs):
            raise ShapeError(f"{self.name}: takes {len(self.inputs)} operands ({self.signature}), got {n_operands}")
        if unknown := set(attrs) - set(self.attrs):
            raise ShapeError(f"{self.name}: has no attribute {', '.join(sorted(unknown))}; it knows {list(self.attrs)}")

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.signature}>"


def op(
    signature: str,
    *,
    flops: str = "0",
    where: str = "",
    touches: Mapping[str, str] | None = None,
    view_of: str | Mapping[str, str] = "",
    fused: bool = False,
) -> Callable[[Formula], Op]:
    """Declare an op: `@op("x[T, n], weight[m, n] -> y[T, m]", flops="2*T*m*n")` above its formula.

    view_of: the operand whose memory the output is; of an op with several outputs a mapping, output -> operand.
    """
    left, _, right = signature.partition("->")
    inputs, outputs = _operands(left), _operands(right)
    if isinstance(view_of, str):
        view_of = {outputs[0].name: view_of} if view_of else {}

    def declare(formula: Formula) -> Op:
        attrs = [p.name for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY]
        made = Op(
            name=formula.__name__,
            inputs=inputs,
            outputs=outputs,
            formula=formula,
            attrs=tuple(attrs),
            where=compile(where, signature, "eval") if where else None,
            where_text=where,
            flops=compile(flops, signature, "eval"),
            touches={name: compile(text, signature, "eval") for name, text in (touches or {}).items()},
            views=view_of,
            fused=fused,
        )
        object.__setattr__(made, "__doc__", formula.__doc__)
        OPS[made.name] = made
        return made

    return declare


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(
            name=m["name"],
            dims=tuple(d.strip() for d in m["dims"].split(",")),
            dtype=m["dtype"] or "float",
            written=bool(m["written"]),
        )
        for m in _OPERAND.finditer(text)
    )


def _knows(expression: CodeType, sizes: Mapping[str, int]) -> bool:
    return all(name in sizes for name in expression.co_names)


def _size(dim: str, sizes: Mapping[str, Dim], known: Mapping[str, int]) -> Dim:
    """A letter's size; an expression's value, or its text while a letter in it is symbolic."""
    if dim.isidentifier():
        return sizes.get(dim, dim)
    expression = compile(dim, dim, "eval")
    return int(eval(expression, {}, dict(known))) if _knows(expression, known) else dim
