"""Small models of the sentencepiece package, and how it encodes some texts with them.

    pip install sentencepiece
    python tests/golden/make_sentencepiece.py     # rewrites tests/data/sentencepiece

bpe.model is trained as LLaMA's was: BPE, bytes for what no token holds, nothing normalised. unigram.model is of the other kind,
to be refused. encodings.json holds [text, token ids] for each text. Everything is made from the words here, under this
project's licence (MIT).
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import sentencepiece

TARGET = Path(__file__).parent.parent / "data" / "sentencepiece"
WORDS = """
A language model reads a text as a row of tokens and says which token comes next. The tokens come from a tokenizer, which
was trained on texts of its own: it begins with single letters and joins the two neighbours that stand together most often,
again and again, until there are as many tokens as were asked for. What was joined early is joined first when a text is read.
Letters that it never saw are written as bytes, so that every text can be read, and every text comes back as it was.
The weights of the model are matrices. Each layer looks back at the tokens before, mixes what it finds there, and adds the
result to what it had. At the end stands one number for each token of the vocabulary; the largest is the likeliest.
"""
TEXTS = [
    *("", " ", "  ", "Hello world", " Hello", "the tokens of the model", "  two  spaces and   three ", "line\nfeed\ttab"),
    *("½ 🦙 ñ 中文", "together\u2581with\u2581blocks", "123 4567", "<s> is no control token here </s>", "<0x41>"),
    *("weights weights weights", "The end."),
]


def train(kind: str, n_tokens: int) -> bytes:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.strip().splitlines()),
        model_writer=model,
        model_type=kind,
        vocab_size=n_tokens,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    model = train("bpe", 400)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    (TARGET / "bpe.model").write_bytes(model)
    (TARGET / "unigram.model").write_bytes(train("unigram", 340))
    lines = ",\n".join(json.dumps([text, processor.encode(text)]) for text in TEXTS)
    (TARGET / "encodings.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
