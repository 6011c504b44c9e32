"""What llama.cpp finds for the perplexity of a text, by its C API.

    pip install llama-cpp-python==0.3.36
    python tests/golden/make_perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf [TEXT [N_CTX]]

Without a TEXT it reads tests/data/evaluation/devil.txt and writes perplexity.json beside it. The definition is that of
llama.cpp's own program (tools/perplexity): windows of n_ctx tokens, bos in the place of each first token if the vocabulary
adds one, the second half scored. Logits come from llama.cpp; the mean of their log-softmax is taken here.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from time import perf_counter

import llama_cpp as llama
import numpy as np

DATA = Path(__file__).parent.parent / "data" / "evaluation"


def main(model_path: str, text_path: Path, n_ctx: int) -> dict[str, object]:
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
    params.n_threads = params.n_threads_batch = 2
    context = llama.llama_init_from_model(model, params)
    vocab = llama.llama_model_get_vocab(model)
    n_vocab = llama.llama_vocab_n_tokens(vocab)

    text = text_path.read_bytes()
    ids = (llama.llama_token * (len(text) + 8))()
    n = llama.llama_tokenize(vocab, text, len(text), ids, len(ids), True, False)
    windows = np.array(ids[:n])[: n // n_ctx * n_ctx].reshape(-1, n_ctx)
    batch = llama.llama_batch_init(n_ctx, 0, 1)
    surprise, found, began = [], [], perf_counter()
    for window in windows:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch.n_tokens = n_ctx
        for i, token in enumerate(window.tolist()):
            batch.token[i] = llama.llama_vocab_bos(vocab) if i == 0 and llama.llama_vocab_get_add_bos(vocab) else token
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, 1, 0, i >= n_ctx // 2
        assert llama.llama_decode(context, batch) == 0
        rows = np.ctypeslib.as_array(llama.llama_get_logits(context), (n_ctx - n_ctx // 2, n_vocab))[:-1].astype(np.float64)
        rows -= rows.max(axis=-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), window[n_ctx // 2 + 1 :]]
        surprise += (np.log(np.exp(rows).sum(axis=-1)) - chosen).tolist()
        found.append(float(np.exp(np.mean(surprise))))
        print(f"[{len(found)}]{found[-1]:.4f}", end=",", flush=True)
    seconds = perf_counter() - began
    print(f"\n{len(windows) * n_ctx / seconds:.1f} tokens/s")
    return {"text": text_path.name, "n_ctx": n_ctx, "n_scored": len(surprise), "perplexity": found}


if __name__ == "__main__":
    text = Path(sys.argv[2]) if len(sys.argv) > 2 else DATA / "devil.txt"
    told = main(sys.argv[1], text, int(sys.argv[3]) if len(sys.argv) > 3 else 512)
    if len(sys.argv) == 2:
        (DATA / "perplexity.json").write_text(json.dumps(told, indent=1) + "\n")
