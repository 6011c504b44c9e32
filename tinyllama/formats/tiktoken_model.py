"""LLaMA 3's tokenizer.model, a vocabulary of the tiktoken library, as GGUF's tokenizer metadata.

A line is a token's bytes in base64, a space, and its rank, which is its id. Two neighbours merge if their bytes together are a
token; of all such pairs the one of the lowest rank goes first. So the merges of GPT-2's BPE are every way to cut a token in two
tokens, in the order of ranks. The 256 special tokens stand behind the ranks and not in the file: their names are those of
LLaMA 3.1, which took some of the reserved ones of LLaMA 3 for uses that 3 does not have.
Sources: tiktoken's load.py (load_tiktoken_bpe) and _educational.py; Meta's llama-models, tokenizer.py.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np

from ops.errors import FormatError

from ..tokenizer.byte_level import BYTE_OF
from ..tokenizer.token_kinds import TokenKind

LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}
MAX_BYTES = 2**24  # of the file; LLaMA 3's has 2 MB
MAX_TOKEN_BYTES = 256  # LLaMA 3's longest has 128
MAX_MERGE_LETTERS = 2**23  # of all merges; LLaMA 3's have three million

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
NAMED = {
    0: BEGIN, 1: END, 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
    8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
}  # fmt: skip
N_SPECIAL = 256


def tiktoken_metadata(path: Path) -> dict[str, Any]:
    """The keys tokenizer.ggml.* of a tokenizer.model of LLaMA 3: tokens and merges in byte-level letters, kinds, special ids.

    FormatError: the file is damaged or of another kind; OSError: it cannot be read.
    """
    ranks = _ranks(path)
    letters = {token: "".join(LETTER_OF[byte] for byte in token) for token in ranks}
    special = _special_tokens()
    n = len(ranks)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*letters.values(), *special],
        "tokenizer.ggml.token_type": np.repeat(np.array([TokenKind.NORMAL, TokenKind.CONTROL], np.int32), [n, N_SPECIAL]),
        "tokenizer.ggml.merges": _merges(path, ranks, letters),
        "tokenizer.ggml.bos_token_id": n + special.index(BEGIN),
        "tokenizer.ggml.eos_token_id": n + special.index(END),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def _ranks(path: Path) -> dict[bytes, int]:
    """Rank of each token, in the order of ranks."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FormatError(f"{path}: a tokenizer.model of {size} bytes is none of LLaMA 3's: that has 2 MB")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        encoded, _, rank = line.partition(b" ")
        try:
            token = b64decode(encoded, validate=True)
        except ValueError:
            token = b""
        if not 1 <= len(token) <= MAX_TOKEN_BYTES or token in ranks or rank != b"%d" % number:
            raise FormatError(
                f"{path}: line {number + 1} is {line[:40]!r}, not a new token in base64 and the rank {number}; "
                "this is no tokenizer.model of LLaMA 3, or a damaged one: download it again"
            )
        ranks[token] = number
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise FormatError(f"{path}: not each of the 256 bytes is a token; the file is cut short or damaged: download it again")
    return ranks


def _merges(path: Path, ranks: dict[bytes, int], letters: dict[bytes, str]) -> list[str]:
    """ "left right" in the order of the rank of the union; of one union's, in the order of the parts' ranks."""
    merges: list[str] = []
    n_letters = 0
    for token in ranks:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        n_letters += len(pairs) * (len(token) + 1)
        if n_letters > MAX_MERGE_LETTERS:
            raise FormatError(f"{path}: its tokens can be cut in more ways than any real vocabulary's; the file is damaged")
        merges += [f"{letters[left]} {letters[right]}" for _, _, left, right in sorted(pairs)]
    return merges


def _special_tokens() -> list[str]:
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(N_SPECIAL))
    return [NAMED.get(i) or next(reserved) for i in range(N_SPECIAL)]
