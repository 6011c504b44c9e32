"""A model's chat template: a Jinja program, most often in the model's file, that turns messages into a prompt's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ops.errors import ModelError, OptionError

from .chat_formats import FORMATS, ChatFormat
from .sandbox import run_template

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

    ModelError: the template is no Jinja, refuses the conversation, fails, or breaks a limit of the sandbox; OptionError: what
    is given is not made of text, numbers, lists and dicts.
    """
    return run_template(
        template,
        {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            **extra,
        },
    )
