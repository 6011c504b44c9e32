"""What the lm-evaluation-harness measures with its own `hf` model (PyTorch, float32) on SmolLM2's dequantised weights.

    pip install torch transformers gguf accelerate peft "lm-eval==0.4.13"
    python tests/golden/make_evaluation.py SmolLM2-135M-Instruct.Q4_1.gguf     # writes tests/data/evaluation/golden.json

transformers reads the GGUF file itself and dequantises it, tokenizer and all: neither is this project's code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "evaluation"

ASKED = {"role": "user", "content": "What is the capital of France?"}
BEGUN = {"role": "assistant", "content": "The capital of France is "}
TEMPLATES = {
    "its own": None,
    "strips": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</{{ m['role'] }}>\n{% endfor %}",
    "strips, then a space": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }} {% endfor %}",
    "knows no system": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}",
    "drops the reply": "{% for m in messages if m['role'] == 'user' %}[user] {{ m['content'] }}\n{% endfor %}",
}
PROMPT = "Paris, London, Paris, London,"  # what is likeliest was said before
SAMPLED = [
    {},
    {"temperature": 0.7},
    {"top_p": 0.9},
    {"top_k": 0, "min_p": 0.05},
    {"top_k": 0, "typical_p": 0.3},
    {"top_k": 5, "repetition_penalty": 1.3},
]


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
    golden["chat"] = chat(lm)
    golden["edges"] = edges(lm)
    short = HFLM(pretrained=network, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=16)
    golden["max_length 16"] = too_long(short)
    golden["sampled"] = [{"prompt": PROMPT, "asked": asked, **candidates(network, tokenizer, asked)} for asked in SAMPLED]
    (DATA / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def outcome(ask: Callable[[], Any]) -> Any:
    """What comes out, or {"error": its name}."""
    try:
        return ask()
    except Exception as error:
        return {"error": type(error).__name__}


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def chat(lm: Any) -> list[dict[str, Any]]:
    """Conversations whose last message is to be continued."""
    own, found = lm.tokenizer.chat_template, []
    system = {"role": "system", "content": "Be brief."}
    for name, template in TEMPLATES.items():
        lm.tokenizer.chat_template = template or own
        for history in ([ASKED, BEGUN], [system, ASKED, BEGUN], [ASKED, {**BEGUN, "content": "im_end"}]):
            text = outcome(lambda history=history: lm.apply_chat_template(history, add_generation_prompt=False))
            found.append({"name": name, "template": template, "history": history, "text": text})
    lm.tokenizer.chat_template = own
    return found


def edges(lm: Any) -> list[dict[str, Any]]:
    """Empty texts and unusual settings, one by one: kind of request, its arguments, and what comes out."""
    greedy = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    asked: list[tuple[str, tuple[Any, ...]]] = [
        ("loglikelihood", ("", "The capital of France is Paris.")),
        ("loglikelihood", ("", "<|im_start|>user")),
        ("loglikelihood", ("", "<|im_start|>")),
        ("loglikelihood", ("The capital", "")),
        ("loglikelihood", (" ", "Paris")),
        ("loglikelihood_rolling", ("",)),
        ("generate_until", ("", greedy)),
        ("generate_until", ("<|im_start|>", greedy)),
        ("generate_until", (PROMPT, {**greedy, "repetition_penalty": 1.3})),
        ("generate_until", ("The capital of France is", {**greedy, "max_gen_toks": 512})),
        ("generate_until", ("The capital of France is", {**greedy, "do_sample": True})),
        ("generate_until", ("The capital of France is", {**greedy, "do_sample": True, "temperature": 0.0})),
    ]
    return [
        {
            "kind": kind,
            "arguments": arguments,
            "found": outcome(lambda kind=kind, arguments=arguments: getattr(lm, kind)(requests(kind, arguments))[0]),
        }
        for kind, arguments in asked
    ]


def too_long(lm: Any) -> list[dict[str, Any]]:
    """Continuations as long as max_length, with what is before them cut away, and longer."""
    word = " the"
    pairs = [("The capital of France is" + word * 5, word * n) for n in (1, 12, 15, 16, 17)]
    return [
        {"arguments": pair, "found": outcome(lambda pair=pair: lm.loglikelihood(requests("loglikelihood", pair))[0])}
        for pair in pairs
    ]


def candidates(network: Any, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What transformers would draw the next token from."""
    prompt = tokenizer(PROMPT, return_tensors="pt")
    scores = network.generate(
        **prompt, do_sample=True, max_new_tokens=1, return_dict_in_generate=True, output_scores=True, **asked
    ).scores[0][0]
    p = scores.double().softmax(-1)
    ids = p.nonzero()[:, 0].tolist()
    return {"ids": ids, "p": p[ids].tolist()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
