"""Token ids of random texts by llama.cpp: writes tests/data/vocab/token_ids.json, or compares ours with it on the spot.

    pip install llama-cpp-python==0.3.36 gguf tokenizers
    python tests/golden/make_token_ids.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf   # write
    python tests/golden/make_token_ids.py --compare 2000 some.gguf other.gguf       # compare, also all pre-tokenizers

Use Python 3.10 to 3.12: their unicodedata knows no character that llama.cpp does not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from dense_vocabulary import dense_vocabulary

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))
from tinyllama.formats import open_model_file  # noqa: E402
from tinyllama.tokenizer import Tokenizer  # noqa: E402
from tinyllama.tokenizer.pre_tokenizers import PRE_TOKENIZERS  # noqa: E402

VOCABULARIES = REPOSITORY / "tests/data/vocab"
WORDS = [
    *("the", "of", "we're", "I'M", "don't", "CamelCaseHTTPServer", "snake_case", "x+=1;", "http://a.b/c/", "...\n", "\r\n"),
    *("été", "e\u0301te\u0301", "नमस्ते", "ไทย", "ខ្មែរ", "Ελληνικά", "русский", "العربية", "你好世界", "日本語テキスト"),
    *("한국어", "ʔʕ", "ǅ", "ﬁ", "'ſ", "’s", "'K", "🦙", "👩\u200d👩\u200d👧"),
    *("//", "/* */", "--", "''", "1234567", "３٣½²", "1,000.50"),
]
SPACES = " \t\n\r\v\u0085\u00a0\u1680\u2003\u2028\u3000"
RANGES = [(0x20, 0x7F), (0x80, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000), (0x20000, 0x110000)]


def random_text(rng: random.Random, specials: list[str]) -> str:
    """Words, runs of white space, of one character, of anything, and special tokens, whole or cut."""
    parts = []
    for _ in range(rng.randint(1, 10)):
        kind = rng.randrange(8)
        if kind == 0:
            parts.append("".join(rng.choices(SPACES, k=rng.randint(1, 5))))
        elif kind == 1:
            parts.append(rng.choice(" \n-=.ahab▁你") * rng.randint(1, 20))
        elif kind == 2:
            some = (chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randint(1, 8)))
            parts.append("".join(c for c in some if unicodedata.category(c) != "Cn"))
        elif kind == 3 and specials:
            token = rng.choice(specials)
            parts.append(token if rng.random() < 0.8 else token[: rng.randint(1, len(token))])
        elif kind == 4:
            parts.append("".join(rng.choices("0123456789!?.,;:'\"()[]{}<>|@#$%^&*~`", k=rng.randint(1, 8))))
        else:
            parts.append(rng.choice(["", " "]) + rng.choice(WORDS))
    return "".join(parts)


def special_texts(metadata: Any) -> list[str]:
    kinds = metadata["tokenizer.ggml.token_type"]
    return [token for token, kind in zip(metadata["tokenizer.ggml.tokens"], kinds, strict=True) if kind in (2, 3, 4)]


def load(path: Path, pre: str | None = None) -> Any:
    override = {"tokenizer.ggml.pre": pre} if pre else None
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False, kv_overrides=override)


def both_ways(llama: Any, text: str) -> dict[str, list[int]]:
    """Nothing added and nothing special, and the opposite."""
    data = text.encode()
    return {
        "plain": llama.tokenize(data, add_bos=False, special=False),
        "special": llama.tokenize(data, add_bos=True, special=True),
    }


def write_dense(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(8)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_eps(1e-5)
    for key, value in dense_vocabulary("gpt-2").items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write(smollm2: Path, dense: Path) -> None:
    golden: dict[str, Any] = {"llama_cpp_python": llama_cpp.__version__, "vocabularies": {}, "pre_tokenizers": {}}
    rng = random.Random(1)
    for path in (*sorted(VOCABULARIES.glob("*.gguf")), smollm2):
        llama, metadata = load(path), open_model_file(path).metadata
        vocab = llama._model.vocab
        specials = special_texts(metadata)
        tokens = range(len(metadata["tokenizer.ggml.tokens"]))
        texts = [random_text(rng, specials) for _ in range(40)]
        golden["vocabularies"]["smollm2" if path == smollm2 else path.name] = {
            "ends": [id for id in tokens if llama_cpp.llama_vocab_is_eog(vocab, id)],
            "controls": [id for id in tokens if llama_cpp.llama_vocab_is_control(vocab, id)],
            "cases": [{"text": text, **both_ways(llama, text)} for text in texts],
        }
    one_of_each = {pre_tokenizer: name for name, pre_tokenizer in PRE_TOKENIZERS.items()}
    texts = [random_text(rng, ["<|begin|>", "<|end|>"]) for _ in range(20)]
    golden["texts"] = texts
    for name in sorted(one_of_each.values()):
        llama = load(dense, name)
        golden["pre_tokenizers"][name] = [both_ways(llama, text)["special"] for text in texts]
    file = VOCABULARIES / "token_ids.json"
    file.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")
    print(f"{file}: {file.stat().st_size:,} bytes")


def compare(n_texts: int, paths: list[Path], dense: Path) -> None:
    jobs = [(path, None) for path in paths] + [(dense, name) for name in PRE_TOKENIZERS]
    for path, pre in jobs:
        metadata = dict(open_model_file(path).metadata) | ({"tokenizer.ggml.pre": pre} if pre else {})
        llama, ours, rng = load(path, pre), Tokenizer.from_metadata(metadata), random.Random(2)
        specials, different = special_texts(metadata), 0
        for _ in range(n_texts):
            text = random_text(rng, specials)
            for add, special in ((False, False), (False, True), (True, False), (True, True)):
                theirs = llama.tokenize(text.encode(), add_bos=add, special=special)
                if theirs != ours.encode(text, add_bos=None if add else False, parse_special=special):
                    different += 1
                    print(f"  differs: {text!a} add_special={add} parse_special={special}")
        print(f"{pre or path.name}: {n_texts} texts in 4 ways, {different} differ", flush=True)


@llama_cpp.llama_log_callback
def silence(level: int, text: bytes, user_data: Any) -> None:
    """llama.cpp warns of every second BOS."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=int, metavar="N", help="compare on N texts for each vocabulary")
    parser.add_argument("files", nargs="+", type=Path, help="SmolLM2 to write; any GGUF files to compare")
    args = parser.parse_args()
    llama_cpp.llama_log_set(silence, ctypes.c_void_p())
    with tempfile.TemporaryDirectory() as folder:
        dense_file = Path(folder) / "dense.gguf"
        write_dense(dense_file)
        if args.compare:
            compare(args.compare, args.files, dense_file)
        else:
            write(args.files[0], dense_file)
