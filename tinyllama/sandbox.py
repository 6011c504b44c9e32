"""Jinja's sandbox, with limits on time and size: for a program that comes from a stranger, inside a model file.

The sandbox gives no files, no attributes of Python's own, and no changing of what the program is given. But it lets a
program loop for hours, or fill the memory with a string. So here each loop iteration, call and filter looks at the
clock, and each value made is counted and weighed. That holds between operations; since none works on more than
SIZE_LIMIT, each ends soon.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from time import monotonic
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.runtime import Context as Variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ops.errors import ModelError

TIME_LIMIT_S = 5.0
SIZE_LIMIT = 10_000_000  # characters made by one rendering; no value may be larger, counted with all that it holds
ELEMENT = 10  # characters: what an element of a list counts for, about the memory it takes
SOURCE_LIMIT = 500_000  # characters of the program itself; the longest chat template in use has about 30 000
INT_BITS_LIMIT = 10_000

# What a prompt does not need, and what makes much out of little or is slow on long text.
_LEFT_OUT_FILTERS = frozenset(
    ("batch", "center", "filesizeformat", "format", "groupby", "pprint", "random", "slice", "striptags", "truncate",
     "urlize", "wordcount", "wordwrap", "xmlattr")
)  # fmt: skip
_LEFT_OUT_METHODS = frozenset(
    ("center", "expandtabs", "format_map", "ljust", "rjust", "to_bytes", "translate", "zfill")
)  # fmt: skip
_MULTIPLY = frozenset({"replace", "join", "indent", "tojson"})  # a result may be as long as the product of the operands
_WIDE_FORMAT = re.compile(r"\d{5}|\{[^{}]*\{|%[^a-zA-Z%]*\*")  # "{:99999}", "{:{width}}", "%99999d", "%*d"


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one rendering: its limits count from when it is made. ModelError when one is reached."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, extensions: Sequence[str | type[Extension]], functions: dict[str, Any], filters: dict[str, Any]):
        # optimized=False: constants are computed at rendering, under the limits, not while the program is compiled
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize, extensions=extensions)
        self.made = 0
        self.deadline = monotonic() + TIME_LIMIT_S
        kept = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals = {**kept, "namespace": _Namespace, **functions}
        offered = {**self.filters, **filters}
        self.filters = {name: self._limited(f) for name, f in offered.items() if name not in _LEFT_OUT_FILTERS}
        self.filters |= {"@ticking": self.ticking, "@keep": self.keep, "@weigh": self.weigh, "@join": self.join}

    def program(self, source: str) -> jinja2.Template:
        """Parse and compile. jinja2.TemplateSyntaxError: the source is no Jinja."""
        if len(source) > SOURCE_LIMIT:
            raise ModelError(f"the chat template has {len(source)} characters, more than the {SOURCE_LIMIT} allowed")
        return self.from_string(_Metered().visit(self.parse(source)))

    def tick(self) -> None:
        if monotonic() > self.deadline:
            raise ModelError(f"the chat template was stopped: it ran for more than {TIME_LIMIT_S:g} seconds")

    def ticking(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a `for` loops over, looking at the clock at each item."""
        for item in items:
            self.tick()
            yield item

    def keep(self, value: Any) -> Any:
        """Count a value that the program has made."""
        self.tick()
        if isinstance(value, str):
            self.made += len(value)
        elif isinstance(value, (list, tuple, dict)):
            self.made += ELEMENT * len(value)
        if self.made > SIZE_LIMIT or (isinstance(value, int) and value.bit_length() > INT_BITS_LIMIT):
            raise _too_large()
        return self.weigh(value)

    def weigh(self, value: Any) -> Any:
        """Refuse a value too large with all that it holds: [a, a], where a is [b, b], where b ... doubles each time."""
        _weight(value)
        return value

    def join(self, _: str, *values: Any) -> str:
        """The operator ~"""
        return cast("str", self.keep("".join([str(self.weigh(value)) for value in values])))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _LEFT_OUT_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Variables, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        _check_operands(getattr(function, "__name__", ""), [owner, *args, *kwargs.values()])
        return self.keep(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Variables, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > INT_BITS_LIMIT:
                raise _too_large()
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and _weight(sequence) * times > SIZE_LIMIT:
                raise _too_large()
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return self.keep(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja asks this about each attribute that is read, because "...".format could reach private ones."""
        text = getattr(value, "__self__", None)
        if isinstance(text, str) and getattr(value, "__name__", "") == "format":
            _check_format(text)
        return super().wrap_str_format(value)

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that checks its operands before, and counts its result."""
        # Jinja hands some filters the environment or the context first; what the program passes comes after it
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            _check_operands(function.__name__.removeprefix("do_").lstrip("_"), [*args[first:], *kwargs.values()])
            return self.keep(function(*args, **kwargs))

        return limited


class _Metered(NodeTransformer):
    """Rewrites the syntax tree so that what jinja computes by itself (for, ~, [], {}, slices, ==) meets the limits."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("@ticking", cast("nodes.Expr", node.iter))
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # so that _finalize counts it, as all that is put out

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("@join", nodes.Const("", lineno=node.lineno), node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through("@keep", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("@keep", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("@keep", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("@weigh", node.expr)
        for operand in node.ops:
            operand.expr = _through("@weigh", operand.expr)
        return node


def _through(filter_name: str, value: nodes.Expr, args: Sequence[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(value, filter_name, list(args), [], None, None, lineno=value.lineno)


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # not its content, which may hold namespaces that hold namespaces


@jinja2.pass_context
def _finalize(context: Variables, value: Any) -> str:
    """All that is put out goes through here, also inside macros and {% set %} blocks."""
    sandbox = cast("Sandbox", context.environment)
    return cast("str", sandbox.keep(str(sandbox.weigh(value))))


def _weight(value: Any) -> int:
    """Its characters, and those that its elements count for, at every depth; stops when that is too large."""
    if isinstance(value, str):
        return len(value)
    weight, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            weight += len(item)
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        weight += ELEMENT
        if weight + ELEMENT * len(waiting) > SIZE_LIMIT:
            raise _too_large()
    return weight


def _check_operands(name: str, operands: Sequence[Any]) -> None:
    """Before the filter or method of this name works on them; a number may be a width, so it weighs what it says."""
    weights = sorted(abs(x) if isinstance(x, int) else _weight(x) for x in operands)
    if name in _MULTIPLY and len(weights) > 1 and weights[-1] * (1 + weights[-2]) > SIZE_LIMIT:
        raise _too_large()


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise ModelError(f"the chat template was stopped: the format {text[:40]!r} is not allowed in it")


def _too_large() -> ModelError:
    return ModelError(f"the chat template was stopped: what it makes is larger than {SIZE_LIMIT} characters")
