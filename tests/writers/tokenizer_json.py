"""Tokenizers of the two kinds that LLaMA's descendants have, built with the tokenizers library, which writes tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# QWEN2: of the tokenizer.json of Qwen2.5. FALCON: of falcon-7b.
QWEN2 = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
                r"\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
FALCON = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)


def sentencepiece_tokenizer(tokens: Sequence[str], *, metaspace: bool = False) -> Tokenizer:
    """LLaMA's tokenizer.json of a vocabulary whose pieces stand in the order of their scores.

    Merges as transformers' conversion makes them: all ways to cut a piece in two others, best piece first
    (convert_slow_tokenizer.py, generate_merges). metaspace: the newer way to write spaces.
    """
    ids = {token: id for id, token in enumerate(tokens)}
    pieces = [token for token in tokens[3:] if not re.fullmatch("<0x..>", token)]
    merges = []
    for piece in pieces:
        pairs = [(left, right) for left, right in product(pieces, pieces) if left + right == piece]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return made


def byte_level_tokenizer(
    tokens: Sequence[str], merges: Sequence[str], specials: Sequence[str], cutter: pre_tokenizers.PreTokenizer = QWEN2
) -> Tokenizer:
    """Byte-level BPE. `tokens` begin with the plain ones; `specials` are those behind them."""
    plain = {token: id for id, token in enumerate(tokens) if token not in specials}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    made = Tokenizer(models.BPE(vocab=plain, merges=pairs))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = cutter
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    return made
