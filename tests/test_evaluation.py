"""Perplexity against llama.cpp's, and the lm-evaluation-harness against its own PyTorch model on the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.errors import OptionError
from tinyllama import Model
from tinyllama.cli.main import main
from tinyllama.evaluation import perplexity
from tinyllama.evaluation.perplexity import log_softmax_at, perplexity_of_tokens
from tinyllama.evaluation.scoring import ROWS, Scorer

DATA = Path(__file__).parent / "data"
EVALUATION = DATA / "evaluation"
# llama.cpp computes with activations of 8 bits: the issue allows 0.5 %, observed 0.05 %
OF_LLAMA_CPP = 0.005


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Model:
    return Model.load(smollm2, n_ctx=512)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model.load(DATA / "tiny" / "llama-gqa-tied.gguf")


def test_perplexity_is_llama_cpps(real):
    """On each window of an excerpt of The Devil's Dictionary; tests/golden/make_perplexity.py recorded llama.cpp's."""
    golden = json.loads((EVALUATION / "perplexity.json").read_text("utf-8"))
    text = (EVALUATION / golden["text"]).read_text("utf-8")
    found = list(perplexity(real, text, n_ctx=golden["n_ctx"]))
    assert [e.n_done for e in found] == list(range(1, len(golden["perplexity"]) + 1))
    assert found[-1].n_scored == golden["n_scored"]
    for estimate, expected in zip(found, golden["perplexity"], strict=True):
        assert estimate.perplexity == pytest.approx(expected, rel=OF_LLAMA_CPP)


def test_perplexity_by_its_definition(tiny):
    """The formula written out, token by token, in float64."""
    tokens, n_ctx = np.random.default_rng(0).integers(3, tiny.config.n_vocab, 70).tolist(), 16
    surprises = []
    for start in range(0, 64, n_ctx):
        window = [tiny.tokenizer.bos, *tokens[start + 1 : start + n_ctx]]
        logits = tiny.context().eval(window, logits="all").astype(np.float64)
        for i in range(n_ctx // 2, n_ctx - 1):
            p = np.exp(logits[i]) / np.exp(logits[i]).sum()
            surprises.append(-np.log(p[tokens[start + i + 1]]))
    *_, last = perplexity_of_tokens(tiny, tokens, n_ctx=n_ctx)
    assert last.n_scored == len(surprises)
    # logits of 8 with 24 bits: a relative 1e-6 each, and batches of other lengths round otherwise
    assert last.perplexity == pytest.approx(np.exp(np.mean(surprises)), rel=1e-5)
    assert last.error == pytest.approx(last.perplexity * np.std(surprises) / np.sqrt(len(surprises) - 1), rel=1e-4)


def test_a_text_that_is_too_short(tiny):
    with pytest.raises(OptionError, match="two windows of n_ctx = 64"):
        perplexity(tiny, "the and the", n_ctx=64)
    with pytest.raises(OptionError):
        perplexity(tiny, "the and the", n_ctx=1)


def test_the_command(capsys, tmp_path):
    text, model = tmp_path / "text.txt", str(DATA / "tiny" / "llama-gqa-tied.gguf")
    text.write_text("the and in the on at " * 60, "utf-8")
    assert main(["perplexity", "-m", model, "-f", str(text), "-c", "32", "--chunks", "3"]) == 0
    out, err = capsys.readouterr()
    estimates, final = out.strip().splitlines()
    assert estimates.count("[") == 3
    assert final.startswith("Final estimate: PPL = ")
    assert "45 tokens scored in 3 windows of 32" in err
    text.write_text("the", "utf-8")
    assert main(["perplexity", "-m", model, "-f", str(text)]) == 1
    assert "windows of n_ctx = 512" in capsys.readouterr().err


def score_alone(model: Model, tokens: list[int], n: int) -> tuple[float, bool]:
    """Without any sharing: the whole sequence in a context of its own."""
    logits = model.context(n_ctx=400).eval(tokens[:-1], logits="all")[-n:]
    targets = np.array(tokens[-n:])
    return float(log_softmax_at(logits, targets).sum()), bool((logits.argmax(axis=-1) == targets).all())


def test_sequences_that_begin_alike_score_as_if_alone(tiny):
    """Sorted and unsorted, with beginnings shared in every way; the same logits in batches of other lengths: 1e-5 of 8 each."""
    rng = np.random.default_rng(1)
    base = rng.integers(3, tiny.config.n_vocab, 30).tolist()
    requests = []
    for _ in range(60):
        kept = int(rng.integers(1, 30))
        tokens = base[:kept] + rng.integers(3, 9, int(rng.integers(1, 12))).tolist()
        requests.append((tokens, int(rng.integers(1, len(tokens)))))
    for order in (sorted(requests), requests):
        scorer = Scorer(tiny.context())
        for tokens, n in order:
            total, greedy = scorer.score(tokens, n)
            expected, expected_greedy = score_alone(tiny, tokens, n)
            assert total == pytest.approx(expected, abs=2e-4 * n)
            assert greedy == expected_greedy


def test_a_shared_beginning_is_read_once(tiny, monkeypatch):
    """The tokens read are those of the tree that the sequences make, and no more."""
    context = tiny.context(n_ctx=400)
    read, evaluate = [], context.eval

    def counted(tokens: list[int], logits: Literal["last", "all"] = "last") -> NDArray[np.float32]:
        read.append(len(tokens))
        return evaluate(tokens, logits)

    monkeypatch.setattr(context, "eval", counted)
    scorer, prompt = Scorer(context), list(range(10, 60))
    for continuation in ([3, 4, 5], [3, 4, 6], [7], [8], [9, 10]):
        scorer.score(prompt + continuation, len(continuation))
    assert sum(read) == len(prompt) + 2 + 1  # [3, 4] and [9]: a last token is predicted, not read
    many = [int(t) for t in np.random.default_rng(2).integers(3, 99, 2 * ROWS + 7)]
    total, _ = scorer.score(many, len(many) - 1)  # longer than the rows kept at a time
    assert total == pytest.approx(score_alone(tiny, many, len(many) - 1)[0], rel=1e-5)


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


@pytest.fixture
def lm(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("lm_eval", reason='needs the lm-evaluation-harness: pip install "tinyllama[eval]"')
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(EVALUATION)  # the tasks name their files relative to where they are
    from lm_eval.api.registry import get_model

    import tinyllama.evaluation.harness  # noqa: F401  (registers the model)

    return get_model("tinyllama").create_from_arg_string(f"model={smollm2},n_ctx=512")


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


def test_the_harness_own_command_knows_the_model(tmp_path):
    pytest.importorskip("lm_eval", reason='needs the lm-evaluation-harness: pip install "tinyllama[eval]"')
    model = DATA / "tiny" / "llama-gqa-tied.gguf"
    command = [
        sys.executable, "-m", "tinyllama.evaluation", "run", "--model", "tinyllama", "--model_args", f"model={model},n_ctx=64",
        "--tasks", "tiny_facts", "--include_path", str(EVALUATION), "--limit", "2", "--output_path", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=EVALUATION, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tiny_facts" in done.stdout
