"""The kinds of tokens, and the tokens whose meaning is known by their text: end of turn, fill in the middle ...

Files often fail to say which tokens end a generation, or call a control token normal. llama.cpp repairs that by looking
for well-known texts (llama-vocab.cpp, `llama_vocab::impl::load`); the lists here are the facts of that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class TokenKind(IntEnum):
    """Numbers of tokenizer.ggml.token_type in the GGUF specification."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Role -> its metadata keys (tokenizer.ggml.KEY_token_id, of several the last counts) and the texts that tell it.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "eot": (
        ("eot",),
        (
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ),
    ),
    "eom": (("eom",), ("<|eom_id|>",)),
    "fim_pre": (
        ("fim_pre", "prefix"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ),
    ),
    "fim_suf": (
        ("fim_suf", "suffix"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ),
    ),
    "fim_mid": (
        ("fim_mid", "middle"),
        ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": (("fim_pad",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    "fim_rep": (("fim_rep",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    "fim_sep": (("fim_sep",), ("<|file_sep|>",)),
}
ENDING_ROLES = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")

# Each of these ends a generation, be there one or several of them.
END_TEXTS = (
    *ROLES["eot"][1],
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "[e~["),
)

# gpt-oss: these mark up the answer and are shown with it.
SHOWN_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

# In a vocabulary with all tokens of one of these sets, <|end|> closes a message but does not end the generation.
END_CLOSES_MESSAGE = (
    {"<|return|>", "<|call|>", "<|end|>"},
    {"<|return|>", "<|calls|>", "<|end|>"},
    {"<|flush|>", "<|call|>", "<|end|>"},
    {"<|flush|>", "<|calls|>", "<|end|>"},
)


@dataclass(frozen=True)
class Roles:
    """What was found."""

    eot: int | None
    ends: frozenset[int]  # ids that end a generation
    kinds: dict[int, TokenKind]  # kinds that differ from what the file says


def find_roles(ids: Mapping[str, int], given: Mapping[str, int | None], eos: int | None) -> Roles:
    """Looks for tokens by their text (`ids`: token -> id); `given` holds the ids that the file states, by role."""
    kinds: dict[int, TokenKind] = {}
    roles = dict(given)
    for role, (_, texts) in ROLES.items():
        if roles.get(role) is None:
            roles[role] = next((ids[text] for text in texts if text in ids), None)
            if (id := roles[role]) is not None:
                kinds[id] = TokenKind.CONTROL
    ends = {roles[role] for role in ENDING_ROLES} | {eos}
    for text in END_TEXTS:
        if text in ids:
            ends.add(ids[text])
            kinds[ids[text]] = TokenKind.CONTROL
    for text in SHOWN_TEXTS:
        if text in ids:
            kinds[ids[text]] = TokenKind.USER_DEFINED
    if any(all(text in ids for text in texts) for texts in END_CLOSES_MESSAGE):
        ends.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = TokenKind.USER_DEFINED
    return Roles(roles["eot"], frozenset(id for id in ends if id is not None), kinds)
