"""The process that chat templates run in: a line of JSON comes in for each, a line goes out.   See sandbox.py."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def main() -> None:
    """The last argument: bytes of memory that this process may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks
    limit = int(sys.argv[-1])
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limits, macOS not this one
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes to no file
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(**request) if request else {}), flush=True)


def answer(template: str, variables: dict[str, Any], size_limit: int) -> dict[str, str]:
    """The text, or how a sentence about the error goes on."""
    try:
        size, pieces = 0, []
        for piece in environment().from_string(template).generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > size_limit:
                return {"error": f"was stopped: what it makes is larger than {size_limit} characters"}
        return {"text": "".join(pieces)}
    except Refused as error:
        return {"error": f"refuses this conversation: {error}"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"cannot be used: line {error.lineno}: {error.message}"}
    except RecursionError:
        return {"error": "cannot be used: it is nested too deeply"}
    except MemoryError:
        return {"error": "was stopped: it takes more memory than it may"}
    except Exception as error:  # it is a program: any error of Python may come out of it
        return {"error": f"failed: {str(error) or type(error).__name__}"}


def environment() -> jinja2.Environment:
    """The language of transformers' apply_chat_template."""
    # optimized=False: constants are computed while it runs, when an error is told as an error
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    made.filters["tojson"] = to_json
    return made


class Refused(Exception):
    """The template says that it was not made for this conversation."""


def refuse(message: str) -> None:
    raise Refused(message)


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks replies for training; for a prompt it is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Escapes nothing for HTML, which Jinja's own does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
