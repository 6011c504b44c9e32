"""The tokenizer of a Hugging Face folder, which is spread over several files, as GGUF's metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ops.errors import FormatError

from ..tokenizer.sentencepiece import SPACE
from ..tokenizer.token_kinds import END_TEXTS, TokenKind
from .json_object import JsonObject, read_optional
from .other_files import is_there
from .sentencepiece_model import sentencepiece_metadata
from .tokenizer_json import has_byte_fallback, tokenizer_json_metadata

KEY = "tokenizer.ggml."
MAX_TEMPLATE_BYTES = 2**24
NOT_MERGED = -1000.0  # score of tokens behind those of tokenizer.model, which are found by their texts; llama.cpp's number


def tokenizer_metadata(folder: Path, config: JsonObject, n_vocab: int) -> dict[str, Any]:
    """The keys tokenizer.*. n_vocab: rows of the embedding; ids without a token are padded, added tokens beyond are dropped.

    FormatError: a file is missing or damaged; ModelError: a kind of tokenizer that is not supported.
    """
    settings = read_optional(folder / "tokenizer_config.json")
    tokenizer = read_optional(folder / "tokenizer.json")
    metadata = _vocabulary(folder, tokenizer, settings, n_vocab)
    tokens, kinds = metadata[f"{KEY}tokens"], metadata[f"{KEY}token_type"]
    for id, text, special in _added(folder, tokenizer, settings):
        if id < n_vocab:
            kinds[id] = TokenKind.CONTROL if special else TokenKind.USER_DEFINED
            tokens[id] = text if special else text.replace(SPACE, " ")
    generation = read_optional(folder / "generation_config.json")
    metadata |= _special_ids(tokens, config, settings, generation, tokenizer)
    unknown = metadata.get(f"{KEY}unknown_token_id")
    if unknown is not None and metadata[f"{KEY}model"] == "llama":
        kinds[unknown] = TokenKind.UNKNOWN
    metadata |= _added_around(metadata, tokens, settings, tokenizer)
    if template := _chat_template(folder, settings):
        metadata["tokenizer.chat_template"] = template
    return metadata


def _vocabulary(folder: Path, tokenizer: JsonObject, settings: JsonObject, n_vocab: int) -> dict[str, Any]:
    """Of tokenizer.model, if there is one: it has the scores themselves. The arrays may be written to."""
    path = folder / "tokenizer.model"
    if is_there(path) and (not tokenizer.values or has_byte_fallback(tokenizer)):
        metadata = sentencepiece_metadata(path)
        n = len(metadata[f"{KEY}tokens"])
        if n > n_vocab:
            raise FormatError(f"{path}: it has {n} tokens, but the model's embedding has {n_vocab} rows; it is another model's")
        if "add_prefix_space" in settings:
            metadata[f"{KEY}add_space_prefix"] = settings.flag("add_prefix_space")
        pads = range(n, n_vocab)
        for name, pad in (("scores", NOT_MERGED), ("token_type", TokenKind.UNUSED)):
            values = np.asarray(metadata[KEY + name])
            metadata[KEY + name] = np.append(values, np.full(len(pads), pad, values.dtype))
        return metadata | {f"{KEY}tokens": [*metadata[f"{KEY}tokens"], *(f"[PAD{id}]" for id in pads)]}
    if tokenizer.values:
        return tokenizer_json_metadata(tokenizer, n_vocab)
    raise FormatError(
        f"{folder}: the folder holds neither tokenizer.json nor tokenizer.model; download one of them too, or write "
        "tokenizer.json with transformers' AutoTokenizer and save_pretrained"
    )


def _added(folder: Path, tokenizer: JsonObject, settings: JsonObject) -> Iterator[tuple[int, str, bool]]:
    """Id, text, and whether it is special, of each added token; of several files the last counts."""
    added = read_optional(folder / "added_tokens.json")
    for text in added.values:
        yield _id(added, added.values[text]), text, False
    for token in tokenizer.objects("added_tokens"):
        yield _id(token, token.values.get("id")), token.text("content"), token.flag("special", default=False)
    by_id = settings.object("added_tokens_decoder")
    for number in by_id.values:
        token = by_id.object(number)
        id = _id(by_id, int(number) if number.isdecimal() and len(number) < 10 else number)
        yield id, token.text("content"), token.flag("special", default=False)


def _id(source: JsonObject, value: object) -> int:
    if type(value) is not int or value < 0:
        raise source.error(f"{str(value)[:80]!r} is no token's id; the file is damaged")
    return value


def _special_ids(
    tokens: list[str], config: JsonObject, settings: JsonObject, generation: JsonObject, tokenizer: JsonObject
) -> dict[str, int]:
    """What begins and ends a text. tokenizer_config.json names tokens by their texts, the other files by their ids.

    A model may have several ends. The tokenizer's own is eos; of the others those that cannot be known by their text
    (token_kinds.py) become GGUF's eom and eot, which also end a generation.
    """
    ids, n_vocab = {text: id for id, text in enumerate(tokens)}, len(tokens)
    given = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        text = settings.values.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if role == "unk" and text is None and tokenizer.values:
            text = tokenizer.object("model").values.get("unk_token")
        stated = _stated(role, generation, n_vocab) + _stated(role, config, n_vocab)
        if isinstance(text, str) and text in ids:
            given[name] = ids[text]
        elif stated:
            given[name] = stated[0]
    ends = dict.fromkeys(_stated("eos", generation, n_vocab) + _stated("eos", config, n_vocab))
    others = [id for id in ends if id != given.get("eos") and tokens[id] not in END_TEXTS]
    given |= dict(zip(("eom", "eot"), others, strict=False))
    return {f"{KEY}{name}_token_id": id for name, id in given.items()}


def _stated(role: str, file: JsonObject, n_vocab: int) -> list[int]:
    value = file.values.get(f"{role}_token_id")
    return [id for id in (value if isinstance(value, list) else [value]) if type(id) is int and 0 <= id < n_vocab]


def _added_around(metadata: dict[str, Any], tokens: list[str], settings: JsonObject, tokenizer: JsonObject) -> dict[str, bool]:
    """Whether a text gets a beginning and an end: tokenizer.json's template says so, else tokenizer_config.json."""
    processor = tokenizer.object("post_processor")
    templates = [p for p in (processor.objects("processors") or [processor]) if "single" in p]
    found = {}
    for role, place in (("bos", 0), ("eos", -1)):
        flag = f"add_{role}_token"
        if templates and len(parts := templates[-1].objects("single")) > 1:
            id = metadata.get(f"{KEY}{role}_token_id")
            found[KEY + flag] = id is not None and parts[place].object("SpecialToken").text("id", default="") == tokens[id]
        elif isinstance(settings.values.get(flag), bool):
            found[KEY + flag] = settings.values[flag]
        elif tokenizer.values:
            found[KEY + flag] = False
    return found


def _chat_template(folder: Path, settings: JsonObject) -> str | None:
    """chat_template.jinja, or of tokenizer_config.json; where it has several, the one named default."""
    path = folder / "chat_template.jinja"
    if is_there(path):
        with path.open("rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{path}: the template is not UTF-8; download it again") from None
        if len(data) > MAX_TEMPLATE_BYTES:
            raise FormatError(f"{path}: a template of more than {MAX_TEMPLATE_BYTES} bytes is none; download it again")
        return text
    template = settings.values.get("chat_template")
    if isinstance(template, list):
        named = {t.text("name"): t.text("template") for t in settings.objects("chat_template")}
        return named.get("default")
    return settings.text("chat_template") if template is not None else None
