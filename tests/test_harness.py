"""The lm-evaluation-harness: what comes out is what its own PyTorch model says on the same weights, as recorded by
tests/golden/make_evaluation.py."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ops.errors import ModelError, OptionError
from tinyllama.evaluation import __main__ as command
from tinyllama.sampling import Sampler

DATA = Path(__file__).parent / "data"
EVALUATION = DATA / "evaluation"
GOLDEN = json.loads((EVALUATION / "golden.json").read_text("utf-8"))
NATS = 2e-3  # of a continuation of some ten tokens: 30 layers in float32 round logits of 30 by 1e-4 here and in PyTorch


def evaluate(lm: Any, tasks: list[str], n_shot: int) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(EVALUATION), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        lm, tasks=tasks, task_manager=manager, num_fewshot=n_shot, bootstrap_iters=0
    )
    return found


@pytest.fixture(scope="module")
def harness() -> Any:
    pytest.importorskip("lm_eval", reason='needs the lm-evaluation-harness: pip install "tinyllama[eval]"')
    import tinyllama.evaluation.harness  # registers the model

    return tinyllama.evaluation.harness


@pytest.fixture(scope="module")
def lm(smollm2: Path, harness: Any) -> Iterator[Any]:
    from lm_eval.api.registry import get_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(EVALUATION)  # the tasks name their files relative to where they are
        yield get_model("tinyllama").create_from_arg_string(f"model={smollm2},n_ctx=512,backend=numpy")


@pytest.fixture(scope="module")
def tiny_lm(harness: Any) -> Any:
    return harness.TinyLlamaLM(str(DATA / "tiny" / "llama-gqa-tied.gguf"), n_ctx=64, backend="numpy")


def ask(lm: Any, kind: str, *arguments: Sequence[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type=kind, doc={}, arguments=tuple(each), idx=i) for i, each in enumerate(arguments)]
    answers: list[Any] = getattr(lm, kind)(requests, disable_tqdm=True)
    return answers


@pytest.mark.parametrize("n_shot", [0, 3])
def test_the_harness_finds_what_it_finds_with_pytorch(lm, n_shot):
    """Accuracies equal, log-likelihoods up to rounding; the script tests/golden/make_evaluation.py recorded the others."""
    golden = GOLDEN[f"{n_shot}-shot"]
    found = evaluate(lm, list(golden["results"]), n_shot)
    for task, results in golden["results"].items():
        for key, value in results.items():
            rel = 1e-3 if "perplexity" in key else 1e-12  # exp of a mean log-likelihood; accuracies are counts
            assert found["results"][task][key] == pytest.approx(value, rel=rel), (task, key)
        for sample, expected in zip(found["samples"][task], golden["responses"][task], strict=True):
            for got, wanted in zip(sample["filtered_resps"], expected, strict=True):
                if isinstance(wanted, list):
                    assert got[0] == pytest.approx(wanted[0], abs=NATS)
                    assert got[1] == wanted[1]
                else:
                    assert got == (pytest.approx(wanted, abs=10 * NATS) if isinstance(wanted, float) else wanted)


def failed(found: Any) -> bool:
    return isinstance(found, dict)


@pytest.mark.parametrize("case", GOLDEN["chat"], ids=lambda case: case["name"])
def test_a_message_to_be_continued_ends_where_transformers_ends_it(lm, case, monkeypatch):
    if case["template"] is not None:
        monkeypatch.setattr(lm, "chat_template", lambda: case["template"])
    if failed(case["text"]):
        with pytest.raises(ModelError, match="cannot be continued"):
            lm.apply_chat_template(case["history"], add_generation_prompt=False)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert lm.apply_chat_template(case["history"], add_generation_prompt=False) == case["text"]
    left_out = any(m["role"] == "system" and m["content"] not in case["text"] for m in case["history"])
    assert ["without the system message" in str(w.message) for w in warned] == [True] * left_out


def test_without_a_chat_template(tiny_lm):
    with pytest.raises(ModelError, match="--apply_chat_template"):
        tiny_lm.apply_chat_template([{"role": "user", "content": "the"}])


def is_lenient(edge: dict[str, Any]) -> bool:
    """transformers fails, this model answers: an empty prompt, and sampling without a temperature or with 0."""
    text, asked = edge["arguments"][0], edge["arguments"][-1]
    return edge["kind"] == "generate_until" and (text == "" or asked["do_sample"])


@pytest.mark.parametrize(
    "edge", [e for e in GOLDEN["edges"] if not is_lenient(e)], ids=lambda e: f"{e['kind']} {e['arguments']}"
)
def test_empty_texts_and_unusual_settings(lm, edge):
    found = edge["found"]
    if failed(found):
        with pytest.raises(OptionError, match="max_length = 512"):
            ask(lm, edge["kind"], edge["arguments"])
        return
    (got,) = ask(lm, edge["kind"], edge["arguments"])
    if isinstance(found, list):
        assert got == (pytest.approx(found[0], abs=NATS), found[1])
    else:
        assert got == found


def test_what_transformers_refuses_and_this_model_answers(lm):
    """An empty prompt is one of the prefix token alone; temperature 0 is greedy, also where a task asks to sample."""
    refused = [e for e in GOLDEN["edges"] if is_lenient(e)]
    assert all(failed(e["found"]) for e in refused)
    from_prefix = next(
        e["found"] for e in GOLDEN["edges"] if e["arguments"][0] == "<|im_start|>" and e["kind"] == "generate_until"
    )
    asked = {"until": ["\n"], "max_gen_toks": 12}
    sampled = {**asked, "do_sample": True, "temperature": 0.0}
    assert ask(lm, "generate_until", ("", asked), ("", sampled)) == [from_prefix, from_prefix]


def test_a_continuation_too_long_is_refused_and_a_context_cut(harness, smollm2):
    lm = harness.TinyLlamaLM(str(smollm2), max_length=16, backend="numpy")
    for case in GOLDEN["max_length 16"]:
        if failed(case["found"]):
            with pytest.raises(OptionError, match="max_length = 16"):
                ask(lm, "loglikelihood", case["arguments"])
        else:
            total, greedy = case["found"]
            assert ask(lm, "loglikelihood", case["arguments"]) == [(pytest.approx(total, abs=NATS), greedy)]


@pytest.mark.parametrize("case", GOLDEN["sampled"], ids=lambda case: str(case["asked"]))
def test_tokens_are_drawn_from_what_transformers_draws_from(lm, harness, case):
    from lm_eval.models.utils import normalize_gen_kwargs

    tokens = lm.tok_encode(case["prompt"])
    sampler = Sampler(harness._sampling(normalize_gen_kwargs({"do_sample": True, **case["asked"]})), lm.model.config.n_vocab)
    for token in tokens:
        sampler.accept(token)
    ids, p = sampler.candidates(lm.model.context().eval(tokens))
    assert ids.tolist() == case["ids"]
    assert p == pytest.approx(case["p"], rel=5e-4)  # a logit's error is relative here: observed 2e-5


def test_a_setting_that_is_not_followed_is_told(tiny_lm):
    with pytest.warns(UserWarning, match="num_beams = 4 is not known here and changes nothing"):
        ask(tiny_lm, "generate_until", ("the", {"until": [], "max_gen_toks": 2, "num_beams": 4}))


def test_a_run_that_samples_can_be_repeated(tiny_lm):
    request = ("the", {"until": [], "max_gen_toks": 20, "do_sample": True})
    runs = []
    for seed in (1, 1, 2):
        random.seed(seed)  # as the harness does
        runs.append(ask(tiny_lm, "generate_until", request, request))
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]  # a task's repeats


def test_answers_reach_the_harness_cache_one_by_one(tiny_lm, monkeypatch):
    found = []

    class Hook:
        def add_partial(self, *what: Any) -> None:
            found.append(what)

    monkeypatch.setattr(tiny_lm, "cache_hook", Hook())
    (answer,) = ask(tiny_lm, "loglikelihood", ("the", " and"))
    ask(tiny_lm, "loglikelihood_rolling", ("the and the",))
    assert found == [("loglikelihood", ("the", " and"), answer)]


def test_settings_that_do_not_exist(harness):
    model = str(DATA / "tiny" / "llama-gqa-tied.gguf")
    with pytest.raises(OptionError, match="no such setting: pretrained; there are model, max_length"):
        harness.TinyLlamaLM(model, pretrained="smollm2")
    for wrong in ({"max_length": 0}, {"max_gen_toks": "many"}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))} = "):
            harness.TinyLlamaLM(model, **wrong)


def run_command(model_args: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tinyllama.evaluation", "run", "--model", "tinyllama", "--model_args", model_args]
    words += ["--tasks", "tiny_facts", "--include_path", str(EVALUATION), *more]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, cwd=EVALUATION, env=environment, capture_output=True, encoding="utf-8", timeout=300)


def test_the_harness_own_command_knows_the_model(harness, tmp_path):
    model = DATA / "tiny" / "llama-gqa-tied.gguf"
    done = run_command(f"model={model},n_ctx=64,backend=numpy", "--limit", "2", "--output_path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "tiny_facts" in done.stdout


def test_a_model_that_is_not_there(harness):
    done = run_command("model=nowhere.gguf")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tinyllama: no model 'nowhere.gguf': give the path of a file")


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
    assert command.main() == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.endswith('pip install "tinyllama[eval]" brings the lm-evaluation-harness')
