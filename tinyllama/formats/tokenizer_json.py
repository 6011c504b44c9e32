"""tokenizer.json, the file of Hugging Face's tokenizers library, as GGUF's tokenizer metadata.

Two kinds of BPE are known here. A SentencePiece vocabulary that was converted has byte_fallback (LLaMA 1 and 2, Mistral);
its merges are turned back into scores. Byte-level BPE (LLaMA 3, Qwen, Falcon) cuts text into words first; the file says how
as a program, GGUF with a name, which is found by trying both on a text of hard cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.errors import ModelError

from ..tokenizer.library import library_errors
from ..tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from ..tokenizer.sentencepiece import SPACE
from ..tokenizer.token_kinds import TokenKind
from .json_object import JsonObject

if TYPE_CHECKING:
    import tokenizers

BYTE = re.compile("<0x[0-9A-F]{2}>")
# What pre-tokenizers disagree about: runs of spaces and of newlines, digits and what stands before them, contractions in
# both cases, capitals inside words, punctuation, paths, and alphabets of the world. NFC leaves it as it is.
HARD_TEXT = (
    "Hello  World\n \n\n  \n\t\tHTMLParser camelCase isn't WE'LL 'twas o'dear I'Ve don't--stop...!!\n"
    "  7 1 22 333 4444 55555 1,234.5678 x2y3 (a) [b] {c}; <d> ^e ~f |g| `h` $9 +1 =2 http://a.b/c/\n/d #tag @me 50% "
    "\"quoted\" 'single'   \u00fcber na\u00efve \u041d\u0435\u0449\u043e \u4f60\u597d\u4e16\u754c\u3002 "
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 \u1780\u17b6\u1793\u17cb "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0661\u0662\u0663\u0664 \u00bd \U0001f999\U0001f999 \u2014 \u201cq\u201d \u2026 "
    "\u20ac5 \u00a35 \u00a0\u3000x\r\n\r\n  end   "
)


def has_byte_fallback(tokenizer: JsonObject) -> bool:
    """Whether the vocabulary is one of SentencePiece."""
    return tokenizer.object("model").flag("byte_fallback", default=False)


def tokenizer_json_metadata(tokenizer: JsonObject, n_vocab: int) -> dict[str, Any]:
    """The keys tokenizer.ggml.* of the vocabulary: model, pre, tokens, token_type, scores or merges, and how to treat spaces.

    An id that no token has becomes [PAD<id>], as llama.cpp's converter names it. Added tokens that are not in the
    vocabulary itself, and the ids with a meaning of their own, are the caller's.
    FormatError: the file is damaged; ModelError: its kind cannot be expressed in GGUF's terms, or not run here.
    """
    model = tokenizer.object("model")
    if (kind := model.text("type", default="BPE")) != "BPE":
        raise ModelError(f"{tokenizer.source}: the tokenizer is of the kind {kind[:80]!r}, and only BPE is supported")
    ids = _ids(model, n_vocab)
    merges = _merges(model, ids)
    tokens = [f"[PAD{id}]" for id in range(n_vocab)]
    kinds = np.full(n_vocab, TokenKind.UNUSED, np.int32)
    for token, id in ids.items():
        tokens[id], kinds[id] = token, TokenKind.NORMAL
    found = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if has_byte_fallback(tokenizer):
        unknown = model.text("unk_token", default="<unk>")
        added = {token.text("content") for token in tokenizer.objects("added_tokens")} | {unknown}
        for token, id in ids.items():
            if BYTE.fullmatch(token):
                kinds[id] = TokenKind.BYTE
        return found | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": _scores(model, ids, merges, added, n_vocab),
            "tokenizer.ggml.add_space_prefix": _adds_space(tokenizer),
        }
    return found | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(tokenizer),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def _ids(model: JsonObject, n_vocab: int) -> dict[str, int]:
    ids = model.object("vocab").values
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < n_vocab:
            raise model.error(f"the token {token[:80]!r} has the id {str(id)[:80]}, but the model has {n_vocab} tokens")
    if len(set(ids.values())) < len(ids):
        raise model.error("two tokens of the vocabulary have the same id; the file is damaged")
    return ids


def _merges(model: JsonObject, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens, first merged first: texts "left right" in older files, lists of two in newer ones."""
    merges = []
    given = model.values.get("merges")
    for merge in given if isinstance(given, list) else [given]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part in ids for part in parts)
            or parts[0] + parts[1] not in ids
        ):
            raise model.error(f"the merge {str(merge)[:80]!r} does not join two tokens to a third; the file is damaged")
        merges.append((parts[0], parts[1]))
    return merges


def _scores(
    model: JsonObject, ids: dict[str, int], merges: list[tuple[str, str]], added: Collection[str], n_vocab: int
) -> np.ndarray:
    """SentencePiece's scores, float32 [n_vocab]: minus the rank of the first merge that makes the token.

    SentencePiece joins any two neighbours that make a token, the one of the best score first. So scores say the same as a
    list of merges only if the list has all ways to cut each token in two, and those of one token together.
    """
    rank_of: dict[str, int] = {}
    last = ""
    for rank, (left, right) in enumerate(merges):
        token = left + right
        if token != last and token in rank_of:
            raise _no_scores(model, f"those that make {token[:80]!r} do not stand together")
        last = token
        rank_of.setdefault(token, rank)
    known, units = set(merges), ids.keys() | set().union(*ids)  # SentencePiece joins characters that are no tokens, too
    for token in ids:
        if token in added or BYTE.fullmatch(token):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in units and right in units and (left, right) not in known:
                raise _no_scores(model, f"{left[:80]!r} and {right[:80]!r} make a token, but are not merged")
    scores = np.empty(n_vocab, np.float32)
    scores[:] = -np.arange(len(merges), len(merges) + n_vocab)  # what no merge makes, below all others
    for token, rank in rank_of.items():
        scores[ids[token]] = -rank
    return scores


def _no_scores(model: JsonObject, why: str) -> ModelError:
    return ModelError(
        f"{model.source}: the merges are not those of a SentencePiece vocabulary ({why}), and others with byte_fallback are "
        "not supported; put the model's tokenizer.model into the folder, or take a GGUF file"
    )


def _adds_space(tokenizer: JsonObject) -> bool:
    """Whether a space is put before a text, found by trying."""
    pieces = _pieces(_probe(tokenizer), HARD_TEXT)
    plain = HARD_TEXT.replace(" ", SPACE)
    if pieces == [SPACE + plain] or pieces == [plain]:
        return pieces != [plain]
    raise ModelError(
        f"{tokenizer.source}: the tokenizer changes or cuts text in another way than SentencePiece's for LLaMA does, which "
        "is not supported; put the model's tokenizer.model into the folder, or take a GGUF file"
    )


def _pre_tokenizer(tokenizer: JsonObject) -> str:
    """GGUF's name for how the tokenizer cuts a text into words.

    The first that cuts the hard text exactly so; if none does, the first that gives the same tokens for it: Falcon's cuts
    between a space and digits, which matters to none of its merges.
    """
    ignores_merges = tokenizer.object("model").flag("ignore_merges", default=False)
    candidates = {name: cut for name, cut in PRE_TOKENIZERS.items() if cut.ignores_merges == ignores_merges}
    candidates["default"] = candidates.pop("default", PRE_TOKENIZERS["default"])  # tried last: no model is known to use it
    probe = _probe(tokenizer)
    wanted = _pieces(probe, HARD_TEXT)
    for name, cut in candidates.items():
        probe.pre_tokenizer = _cutter(cut)
        if _pieces(probe, HARD_TEXT) == wanted:
            return name
    with library_errors("encode a text"):
        whole = _library(tokenizer.values | {"post_processor": None, "added_tokens": []})
        wanted_ids = whole.encode(HARD_TEXT, add_special_tokens=False).ids
        for name, cut in candidates.items():
            whole.pre_tokenizer = _cutter(cut)
            if whole.encode(HARD_TEXT, add_special_tokens=False).ids == wanted_ids:
                return name
    raise ModelError(
        f"{tokenizer.source}: this way to cut text into words (pre_tokenizer) is not known here; known are those of "
        f"{', '.join(PRE_TOKENIZERS)}"
    )


def _probe(tokenizer: JsonObject) -> tokenizers.Tokenizer:
    """The file's normalizer and pre_tokenizer around an empty vocabulary: quickly made, whatever the size of the file's."""
    parts = {key: tokenizer.values.get(key) for key in ("normalizer", "pre_tokenizer")}
    return _library(parts | {"model": {"type": "BPE", "vocab": {}, "merges": []}})


def _library(values: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    with library_errors("read tokenizer.json"):
        return Tokenizer.from_str(json.dumps({"version": "1.0", **values}))


def _cutter(cut: PreTokenizer) -> tokenizers.pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _pieces(library: tokenizers.Tokenizer, text: str) -> list[str]:
    with library_errors("cut a text"):
        if library.normalizer is not None:
            text = library.normalizer.normalize_str(text)
        if library.pre_tokenizer is None:
            return [text]
        return [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text)]
