"""A model's chat template: a Jinja program, most often in the model's file, that turns messages into a prompt's text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from ops.errors import ModelError, OptionError

from .chat_formats import FORMATS, ChatFormat
from .sandbox import Sandbox

KEY = "tokenizer.chat_template"  # of a model's own template, in its file


def chat_format(wanted: str | None, metadata: Mapping[str, Any]) -> ChatFormat:
    """The format of this name, or of this Jinja text; None for the template in the model's own file.

    ModelError: the file has none; OptionError: no such name.
    """
    if wanted is None:
        own = metadata.get(KEY)
        if isinstance(own, str) and own.strip():
            return ChatFormat(own)
        raise ModelError(
            "the model's file has no chat template: say which form of conversation it was trained on with --chat-template "
            f"(chat_template= in Python): {', '.join(FORMATS)}, or a Jinja text; for LLaMAs that follow instructions try "
            "alpaca; a model that was trained on none completes a prompt with `tinyllama run`"
        )
    if isinstance(wanted, str) and wanted in FORMATS:
        return FORMATS[wanted]
    if isinstance(wanted, str) and ("{{" in wanted or "{%" in wanted):
        return ChatFormat(wanted)
    raise OptionError(f"chat template {wanted!r}: known names are {', '.join(FORMATS)}; or give a Jinja text")


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    **extra: Any,
) -> str:
    """The prompt's text for a conversation of {"role": ..., "content": ...} messages.

    The language is that of transformers' apply_chat_template: Jinja with trim_blocks and lstrip_blocks, break and
    continue, raise_exception(), strftime_now(), and a tojson that escapes nothing for HTML. add_generation_prompt: end
    with the beginning of a reply; extra: further variables.

    ModelError: the template is no Jinja, refuses the conversation, fails, or breaks a limit of the sandbox.
    """
    sandbox = Sandbox(
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        functions={"raise_exception": _raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)},
        filters={"tojson": _tojson},
    )
    try:
        return sandbox.program(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            **extra,
        )
    except ModelError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template cannot be used: line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ModelError("the chat template cannot be used: it is nested too deeply") from error
    except Exception as error:  # it is a program: any error of Python may come out of it
        raise ModelError(f"the chat template failed: {error or type(error).__name__}") from error


class _GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks replies for training; for a prompt it is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> None:
    raise ModelError(f"the chat template refuses this conversation: {message}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
