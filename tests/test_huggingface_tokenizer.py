"""Tokenizers of Hugging Face folders: the ids that the tokenizers library gives for the same files."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from writers import huggingface as writer
from writers.meta import sentencepiece_model
from writers.tiny import TinyLlama
from writers.tokenizer_json import FALCON, byte_level_tokenizer, sentencepiece_tokenizer

from ops.errors import FormatError, ModelError
from tinyllama.formats import open_model_file
from tinyllama.formats.huggingface_tokenizer import tokenizer_metadata
from tinyllama.formats.json_object import JsonObject
from tinyllama.formats.tokenizer_json import HARD_TEXT, tokenizer_json_metadata
from tinyllama.tokenizer import Tokenizer
from tinyllama.tokenizer.pre_tokenizers import PRE_TOKENIZERS

VOCAB = Path(__file__).parent / "data" / "vocab"
WORDS = st.sampled_from(
    [
        "the",
        " and",
        "  ",
        "hand",
        "ing",
        "▁",
        "▁the",
        "éü",
        "你好",
        "🦙",
        "\n",
        "\t",
        " 1",
        "2345",
        "isn't",
        "--",
        ".",
        "<s>",
        "</s>",
        "<|end|>",
    ]
)
# The pattern of LLaMA 3 and Qwen ignores the case of contractions, and so takes the long s for an s; llama.cpp's does not
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map("".join).filter(lambda text: "\u017f" not in text)


def metadata_of(library: tokenizers.Tokenizer) -> dict[str, Any]:
    return tokenizer_json_metadata(JsonObject("tokenizer.json", json.loads(library.to_str())), library.get_vocab_size())


def ours(library: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer of a folder with that tokenizer.json."""
    library.save(str(folder / "tokenizer.json"))
    config = JsonObject("config.json", {})
    return Tokenizer.from_metadata(tokenizer_metadata(folder, config, library.get_vocab_size()))


def vocabulary(name: str) -> dict[str, Any]:
    return dict(open_model_file(VOCAB / f"ggml-vocab-{name}.gguf").metadata)


def check_same_ids(library: tokenizers.Tokenizer, tokenizer: Tokenizer, max_examples: int = 200) -> None:
    @settings(max_examples=max_examples)
    @given(TEXTS)
    def check(text: str) -> None:
        text = unicodedata.normalize("NFC", text)  # what Qwen's tokenizer does first, and llama.cpp's and ours do not
        assert tokenizer.encode(text, add_bos=False) == library.encode(text, add_special_tokens=False).ids

    check()


# ---- SentencePiece vocabularies


def test_a_small_sentencepiece_vocabulary(tmp_path: Path) -> None:
    library = sentencepiece_tokenizer(TinyLlama().tokens)
    check_same_ids(library, ours(library, tmp_path))


def test_the_vocabulary_of_llama(tmp_path: Path) -> None:
    """Its 61,249 merges, made of the scores as transformers makes them, are turned back into scores."""
    metadata = vocabulary("llama-spm")
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    ids = {token: id for id, token in enumerate(tokens)}
    merges = []
    for token in sorted(tokens[259:], key=lambda token: -scores[ids[token]]):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    assert len(merges) == 61249  # as many as in the tokenizer.json of Llama-2-7b-hf
    library = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    tokenizer, by_scores = ours(library, tmp_path), Tokenizer.from_metadata(metadata)
    check_same_ids(library, tokenizer)
    for text in expected_texts("llama-spm"):
        assert tokenizer.encode(text, add_bos=False) == by_scores.encode(text, add_bos=False)


def expected_texts(name: str) -> list[str]:
    return (VOCAB / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")


def test_metaspace(tmp_path: Path) -> None:
    """The newer way to write the same. It puts no second space before a text that begins with one; SentencePiece does."""
    library = sentencepiece_tokenizer(TinyLlama().tokens, metaspace=True)
    tokenizer = ours(library, tmp_path)
    for text in ("the hand", "", "a  b", "✓"):
        assert tokenizer.encode(text, add_bos=False) == library.encode(text, add_special_tokens=False).ids


def sentencepiece_parts() -> dict[str, Any]:
    return dict(json.loads(sentencepiece_tokenizer(TinyLlama().tokens).to_str()))


def test_merges_without_scores_are_refused() -> None:
    parts = sentencepiece_parts()
    merges = parts["model"]["merges"]
    for wrong, words in (
        ([merge for merge in merges if merge != ["▁t", "he"]], "'▁t' and 'he' make a token, but are not merged"),
        ([*merges[1:], merges[0]], None),  # the merges of one token, moved to the end: only another score
        ([*(m for m in merges if m != ["▁t", "he"]), ["▁t", "he"]], "'▁the' do not stand together"),
    ):
        parts["model"]["merges"] = wrong
        if words is None:
            tokenizer_json_metadata(JsonObject("tokenizer.json", parts), TinyLlama().n_vocab)
            continue
        with pytest.raises(ModelError, match=words):
            tokenizer_json_metadata(JsonObject("tokenizer.json", parts), TinyLlama().n_vocab)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}},
        {
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        },
    ],
    ids=["lowercase", "nfkc", "whitespace", "split metaspace"],
)
def test_other_treatments_of_text_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="another way than SentencePiece"):
        tokenizer_json_metadata(JsonObject("tokenizer.json", sentencepiece_parts() | change), TinyLlama().n_vocab)


# ---- byte-level vocabularies


@pytest.mark.parametrize(("name", "cutter"), [("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)), ("falcon", FALCON)])
def test_real_byte_level_vocabularies(name: str, cutter: pre_tokenizers.PreTokenizer) -> None:
    """gpt-2 is found by how it cuts, falcon by the tokens that come of it."""
    metadata = vocabulary(name)
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    library = tokenizers.Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    library.pre_tokenizer = cutter
    library.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind != 1])
    found = metadata_of(library)
    assert found["tokenizer.ggml.pre"] == name
    assert found["tokenizer.ggml.merges"] == metadata["tokenizer.ggml.merges"]
    tokenizer = Tokenizer.from_metadata(found)
    for text in expected_texts(name):
        assert tokenizer.encode(text, add_bos=False) == library.encode(text, add_special_tokens=False).ids


def test_a_small_byte_level_vocabulary(tmp_path: Path) -> None:
    merges = ["t h", "h e", "i n", "th e", "in g", "a n", "an d", "Ġ the", "Ġ and", "1 2", "' s", "! !"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>"]
    library = byte_level_tokenizer(tokens, merges, ["<|end|>"])
    assert metadata_of(library)["tokenizer.ggml.pre"] == "qwen2"
    check_same_ids(library, ours(library, tmp_path))


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_is_recognised(name: str) -> None:
    """A tokenizer.json that cuts by the patterns of one is taken for one with these patterns."""
    cut = PRE_TOKENIZERS[name]
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[], ignore_merges=cut.ignores_merges))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in cut.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    found = PRE_TOKENIZERS[metadata_of(library)["tokenizer.ggml.pre"]]
    same = {cut.patterns, PRE_TOKENIZERS["qwen2"].patterns} if name.startswith(("bailing", "llada")) else {cut.patterns}
    assert found.patterns in same  # bailingmoe's says the same in other words: \s* takes the newlines that [\r\n] leaves
    assert found.ignores_merges == cut.ignores_merges


def test_the_hard_text_tells_all_pre_tokenizers_apart() -> None:
    cuts = {}
    for cut in PRE_TOKENIZERS.values():
        cutter = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in cut.patterns])
        cuts[cut.patterns] = [piece for piece, _ in cutter.pre_tokenize_str(HARD_TEXT)]
    same = [{a, b} for a, b in combinations(cuts, 2) if cuts[a] == cuts[b]]
    assert same == [{PRE_TOKENIZERS["qwen2"].patterns, PRE_TOKENIZERS["bailingmoe"].patterns}]
    assert unicodedata.normalize("NFC", HARD_TEXT) == HARD_TEXT


@pytest.mark.parametrize(
    "cutter", [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Metaspace()]
)
def test_an_unknown_way_to_cut_is_refused(cutter: pre_tokenizers.PreTokenizer) -> None:
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet(), "▁"})
    library = tokenizers.Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = cutter
    with pytest.raises(ModelError, match="not known here; known are"):
        metadata_of(library)


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0}, "a"), models.Unigram([("a", 0.0)], 0), models.WordPiece({"a": 0})]
)
def test_other_kinds_of_models_are_refused(model: models.Model) -> None:
    with pytest.raises(ModelError, match="only BPE is supported"):
        metadata_of(tokenizers.Tokenizer(model))


# ---- what the other files of a folder add


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return writer.write_llama(tmp_path, TinyLlama())


def metadata_in(folder: Path, n_vocab: int) -> dict[str, Any]:
    config = JsonObject("config.json", json.loads((folder / "config.json").read_text()))
    found = tokenizer_metadata(folder, config, n_vocab)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in found.items()}


def test_added_tokens_and_padding(folder: Path) -> None:
    """An embedding has more rows than there are tokens; an added token beyond its rows is dropped."""
    n = TinyLlama().n_vocab
    library = sentencepiece_tokenizer(TinyLlama().tokens)
    library.add_special_tokens([AddedToken("<|im_end|>")])
    library.add_tokens([AddedToken("<tool▁call>", normalized=False), AddedToken("far away")])
    library.save(str(folder / "tokenizer.json"))
    writer.set_keys(folder, "added_tokens.json", **{"[PAD]": n + 5})
    found = metadata_in(folder, n + 4)
    assert found["tokens"][n:] == ["<|im_end|>", "<tool call>", "far away", f"[PAD{n + 3}]"]
    assert found["token_type"][[0, 1, 2, 3, n - 1, n, n + 1, n + 2, n + 3]].tolist() == [2, 3, 3, 6, 1, 3, 4, 4, 5]
    small = metadata_in(folder, n + 1)
    assert small["tokens"][n:] == ["<|im_end|>"]
    with pytest.raises(FormatError, match=f"the model has {n - 1} tokens"):
        metadata_in(folder, n - 1)


def test_ids_with_a_meaning(folder: Path) -> None:
    n = TinyLlama().n_vocab
    found = metadata_in(folder, n)
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (1, 2, 0)
    assert "eom_token_id" not in found
    writer.set_keys(folder, "generation_config.json", eos_token_id=[2, 270, 271, 10**9, -1, None])
    found = metadata_in(folder, n)
    assert (found["eos_token_id"], found["eom_token_id"], found["eot_token_id"]) == (2, 270, 271)
    (folder / "tokenizer_config.json").unlink()  # then the ids of the other files count
    writer.set_keys(folder, "config.json", bos_token_id=5)
    assert metadata_in(folder, n)["bos_token_id"] == 5
    writer.set_keys(folder, "generation_config.json", bos_token_id=6)
    assert metadata_in(folder, n)["bos_token_id"] == 6


def test_every_end_of_the_list_ends_a_generation(folder: Path) -> None:
    writer.set_keys(folder, "generation_config.json", eos_token_id=[2, 270, 271])
    tokenizer = Tokenizer.from_metadata(open_model_file(folder).metadata)
    assert [id for id in range(tokenizer.n_vocab) if tokenizer.is_end(id)] == [2, 270, 271]


@pytest.mark.parametrize("add_bos", [True, False])
def test_what_is_put_around_a_text(add_bos: bool, folder: Path) -> None:
    """The template of tokenizer.json says it; where there is none, tokenizer_config.json."""
    n = TinyLlama().n_vocab
    writer.set_keys(folder, "tokenizer_config.json", add_bos_token=add_bos, add_eos_token=not add_bos)
    found = metadata_in(folder, n)
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, False)
    writer.set_keys(folder, "tokenizer.json", post_processor=None)
    found = metadata_in(folder, n)
    assert (found["add_bos_token"], found["add_eos_token"]) == (add_bos, not add_bos)


def test_chat_templates(folder: Path) -> None:
    n = TinyLlama().n_vocab
    assert "chat_template" not in metadata_in(folder, n)
    writer.set_keys(folder, "tokenizer_config.json", chat_template="one")
    assert metadata_in(folder, n)["chat_template"] == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    writer.set_keys(folder, "tokenizer_config.json", chat_template=named)
    assert metadata_in(folder, n)["chat_template"] == "three"
    (folder / "chat_template.jinja").write_text("four ü", encoding="utf-8")
    assert metadata_in(folder, n)["chat_template"] == "four ü"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="not UTF-8"):
        metadata_in(folder, n)


@pytest.mark.parametrize("with_json", [True, False])
def test_tokenizer_model_comes_first(with_json: bool, folder: Path) -> None:
    """It has the scores themselves; added tokens of the other files are laid over."""
    tiny = TinyLlama()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(tiny))
    if not with_json:
        (folder / "tokenizer.json").unlink()
    writer.set_keys(folder, "added_tokens.json", **{"<extra>": tiny.n_vocab})
    writer.set_keys(folder, "tokenizer_config.json", added_tokens_decoder={"2": {"content": "</s>", "special": True}})
    found = metadata_in(folder, tiny.n_vocab + 2)
    assert found["tokens"] == [*tiny.tokens, "<extra>", f"[PAD{tiny.n_vocab + 1}]"]
    assert found["scores"][3 : tiny.n_vocab].tolist() == tiny.scores[3:]
    assert found["token_type"].tolist() == [*tiny.kinds, 4, 5]
    assert found["add_bos_token"]
    with pytest.raises(FormatError, match="another model's"):
        metadata_in(folder, tiny.n_vocab - 1)
