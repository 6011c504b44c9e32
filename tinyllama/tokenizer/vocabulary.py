"""A vocabulary as a GGUF file states it: tokens, their kinds and scores, and the ids with a meaning of their own.

Keys are those of the GGUF specification (tokenizer.ggml.*). What a file leaves out is filled in as llama.cpp does
(llama-vocab.cpp, `llama_vocab::impl::load`), because files in the wild were made to run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ops.errors import FormatError, ModelError

from .pre_tokenizers import PRE_TOKENIZERS
from .token_kinds import ROLES, TokenKind, find_roles

_PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What encoding and decoding need to know; a token's id is its place in `tokens`."""

    model: str  # "llama": SentencePiece's BPE; "gpt2": byte-level BPE
    pre: str  # name of the pre-tokenizer; "gpt2" only
    tokens: list[str]  # bytes that are no UTF-8 stand as surrogates (errors="surrogateescape")
    ids: dict[str, int] = field(repr=False)  # token -> id; of equal tokens the last
    kinds: list[int]  # TokenKind of each token; a number that is none of them means "unused"
    scores: np.ndarray  # float32 [n_vocab], higher merges first; empty for "gpt2"
    merges: list[str]  # "left right", the first merges first; empty for "llama"
    bos: int | None
    eos: int | None
    eot: int | None
    unknown: int | None
    ends: frozenset[int]  # ids that end a generation
    adds_bos: bool
    adds_eos: bool
    adds_space_prefix: bool
    strips_right: frozenset[int]  # special tokens that swallow the white space behind them

    @property
    def n_vocab(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Raises FormatError for damaged metadata, ModelError for a kind of tokenizer that is not known here."""
        model, pre = _model(metadata)
        spm = model == "llama"
        cut = PRE_TOKENIZERS["default" if spm else pre]
        tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(_texts(metadata, "tokens"))]
        n_vocab = len(tokens)
        _check_unicode(tokens)
        if not tokens:
            raise FormatError(f"the vocabulary is empty: {_PREFIX}tokens has no entries")
        ids = dict(zip(tokens, range(n_vocab), strict=True))
        kinds = [int(TokenKind.NORMAL)] * n_vocab
        if _PREFIX + "token_type" in metadata:
            kinds = _numbers(metadata, "token_type", "iu", n_vocab).tolist()

        eos = _token_id(metadata, ("eos",), n_vocab, default=2 if spm else 11)
        given = {role: _token_id(metadata, keys, n_vocab, default=None) for role, (keys, _) in ROLES.items()}
        roles = find_roles(ids, given, eos)
        for id, kind in roles.kinds.items():
            kinds[id] = kind

        return cls(
            model=model,
            pre=pre,
            tokens=tokens,
            ids=ids,
            kinds=kinds,
            scores=_scores(metadata, n_vocab) if spm else np.empty(0, np.float32),
            merges=[] if spm else _texts(metadata, "merges"),
            bos=_token_id(metadata, ("bos",), n_vocab, default=1 if spm else 11 if cut.has_bos else None),
            eos=eos,
            eot=roles.eot,
            unknown=_token_id(metadata, ("unknown",), n_vocab, default=0 if spm else None),
            ends=roles.ends,
            adds_bos=_flag(metadata, "add_bos_token", default=spm or cut.adds_bos),
            adds_eos=_flag(metadata, "add_eos_token", default=False),
            adds_space_prefix=_flag(metadata, "add_space_prefix", default=True) and spm,
            strips_right=_strips_right(metadata, tokens),
        )


def _model(metadata: Mapping[str, Any]) -> tuple[str, str]:
    """The kind of tokenizer and its pre-tokenizer."""
    model = _text(metadata, _PREFIX + "model")
    if not model:
        raise FormatError(f"the file has no tokenizer: its metadata lacks {_PREFIX}model")
    if model not in MODELS:
        known = ", ".join(MODELS)
        raise ModelError(f"the file's tokenizer is of the kind {model!r} ({_PREFIX}model); known here are {known}")
    pre = _text(metadata, _PREFIX + "pre") or "default"
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ModelError(f"the file's pre-tokenizer is {pre!r} ({_PREFIX}pre); known here are {known}")
    return model, pre


def _check_unicode(tokens: list[str]) -> None:
    """U+DC80 ... U+DCFF stand for bytes that are no UTF-8 (surrogateescape); other surrogates stand for nothing."""
    try:
        "".join(tokens).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(f"{_PREFIX}tokens holds a lone surrogate, which is no text; the file is damaged") from None


def _strips_right(metadata: Mapping[str, Any], tokens: list[str]) -> frozenset[int]:
    """GGUF has no key for it; llama.cpp knows by the model's name that Phi-3's special tokens do so, save three."""
    name = _text(metadata, "general.name").lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    return frozenset(id for id, token in enumerate(tokens) if token not in ("<unk>", "<s>", "<|endoftext|>"))


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    if not isinstance(value, str):
        raise FormatError(f"{key} must be a text, not {type(value).__name__}; the file is damaged")
    return value


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    key = _PREFIX + name
    if key not in metadata:
        raise FormatError(f"the metadata lacks {key}, without which text cannot be encoded")
    value = metadata[key]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FormatError(f"{key} must be an array of texts; the file is damaged")
    return value


def _flag(metadata: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, (bool, np.bool_)):
        raise FormatError(f"{_PREFIX}{name} must be true or false, not {type(value).__name__}; the file is damaged")
    return bool(value)


def _token_id(metadata: Mapping[str, Any], names: Iterable[str], n_vocab: int, *, default: int | None) -> int | None:
    """An id outside the vocabulary counts as not given: real files say 2**32 - 1 to mean none."""
    id = default if default is not None and default < n_vocab else None
    for name in names:
        key = f"{_PREFIX}{name}_token_id"
        value = metadata.get(key, id)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise FormatError(f"{key} must be a token's id, not {type(value).__name__}; the file is damaged")
        if value is not None and 0 <= value < n_vocab:
            id = int(value)
    return id


def _numbers(metadata: Mapping[str, Any], name: str, dtype_kinds: str, n_vocab: int) -> np.ndarray:
    """One number for each token; [n_vocab]."""
    key = _PREFIX + name
    value = metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in dtype_kinds or value.ndim != 1:
        raise FormatError(f"{key} must be an array of numbers, one for each token; the file is damaged")
    if len(value) < n_vocab:
        raise FormatError(f"{key} has {len(value)} entries for {n_vocab} tokens; the file is damaged")
    return value[:n_vocab]


def _scores(metadata: Mapping[str, Any], n_vocab: int) -> np.ndarray:
    if _PREFIX + "scores" not in metadata:
        raise FormatError(f"the metadata lacks {_PREFIX}scores, without which a SentencePiece vocabulary cannot encode")
    scores = _numbers(metadata, "scores", "iuf", n_vocab).astype(np.float32)
    if np.isnan(scores).any():
        id = int(np.flatnonzero(np.isnan(scores))[0])
        raise FormatError(f"{_PREFIX}scores holds no number for token {id}; the file is damaged")
    return scores
