"""What the lm-evaluation-harness measures with its own `hf` model (PyTorch, float32) on SmolLM2's dequantised weights.

    pip install torch transformers gguf accelerate peft "lm-eval==0.4.13"
    python tests/golden/make_evaluation.py SmolLM2-135M-Instruct.Q4_1.gguf     # writes tests/data/evaluation/golden.json

transformers reads the GGUF file itself and dequantises it, tokenizer and all: neither is this project's code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "evaluation"


def main(model: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model.resolve()
    os.chdir(DATA)  # the tasks name their files relative to where they are
    network = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    lm = HFLM(pretrained=network, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=512)
    tasks = TaskManager(include_path=".", include_defaults=False)
    golden: dict[str, Any] = {"lm_eval": lm_eval.__version__, "model": model.name}
    for n_shot in (0, 3):
        names = ["tiny_facts", "tiny_answers", "tiny_texts"] if n_shot == 0 else ["tiny_facts"]
        found = lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, num_fewshot=n_shot, bootstrap_iters=0)
        golden[f"{n_shot}-shot"] = {
            "results": {
                task: {key: float(value) for key, value in results.items() if key.endswith(",none") and value != "N/A"}
                for task, results in found["results"].items()
            },
            "responses": {task: [s["filtered_resps"] for s in samples] for task, samples in found["samples"].items()},
        }
    (DATA / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
