"""Generation: when it ends and what it says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ops.errors import ContextFullError, OptionError, TokenError
from tinyllama import Generation, Model, Sampling

TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(TINY / "llama-mha.gguf", backend="numpy")


@pytest.fixture(scope="module")
def text(model) -> str:
    """What the model says greedily; every stop text below is taken from it."""
    return "".join(model.generate("Hello", n_predict=40, temp=0, ignore_eos=True))


def test_greedy_is_the_argmax_of_each_step(model):
    generation = model.generate("Hello", n_predict=12, temp=0, ignore_eos=True)
    list(generation)
    tokens, context = model.tokenize("Hello"), model.context()
    for token in generation.tokens:
        assert token == int(np.argmax(context.eval(tokens)))
        tokens = [token]
    assert (generation.stop_reason, len(generation.tokens)) == ("length", 12)


def test_pieces_together_are_the_detokenized_tokens(model):
    prompt = model.tokenize("Hello")
    generation = model.generate(prompt, n_predict=60, seed=3, temp=1.5, ignore_eos=True)
    pieces = list(generation)
    data = b"".join(map(model.tokenizer.visible_piece, generation.tokens))
    assert "".join(pieces) == data.decode("utf-8", "replace")
    assert all(pieces)


def test_a_seed_gives_the_same_text(model):
    def say(**settings):
        generation = model.generate("Hello", n_predict=20, **settings)
        return list(generation), generation.sampler.seed

    assert say(seed=5) == say(seed=5)
    assert say(seed=5) != say(seed=6)
    drawn, seed = say()
    assert say(seed=seed)[0] == drawn  # the seed that was drawn is told, and can be used again


def test_end_token_ends_and_is_not_text(model):
    eos = model.tokenizer.eos
    bias = {eos: 1000.0}
    generation = model.generate("Hello", n_predict=9, logit_bias=bias)
    assert ("".join(generation), generation.stop_reason, generation.tokens) == ("", "end", [])
    generation = model.generate("Hello", n_predict=9, logit_bias=bias, ignore_eos=True)
    list(generation)
    assert (generation.stop_reason, generation.tokens) == ("length", [eos] * 9)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (3, 1), (5, 4), (7, 9)])
def test_a_stop_text_ends_it_and_is_not_given_out_though_tokens_split_it(model, text, start, length):
    stop = text[start : start + length]
    generation = model.generate("Hello", n_predict=40, temp=0, ignore_eos=True, stop=["never said", stop])
    assert "".join(generation) == text[: text.index(stop)]
    assert generation.stop_reason == "stop"


def test_the_beginning_of_a_stop_text_alone_is_given_out(model, text):
    generation = model.generate("Hello", n_predict=40, temp=0, ignore_eos=True, stop=[text[-1] + "never said"])
    assert ("".join(generation), generation.stop_reason) == (text, "length")


def test_a_full_context_ends_generation():
    model = Model.load(TINY / "llama-mha.gguf", backend="numpy", n_ctx=16)
    prompt = [3, 4, 5, 6]
    generation = model.generate(prompt, n_predict=-1, ignore_eos=True)
    list(generation)
    assert generation.stop_reason == "context"
    assert generation.context.n_past == 16
    assert len(generation.tokens) == 13  # 12 places, and one more token drawn from the last logits
    with pytest.raises(ContextFullError, match="the prompt has 17 tokens, more than n_ctx = 16"):
        model.generate([3] * 17)
    full = model.generate([3] * 16, n_predict=5, ignore_eos=True)
    list(full)
    assert (full.stop_reason, len(full.tokens)) == ("context", 1)


def test_a_context_keeps_what_two_prompts_share(model):
    context = model.context()
    first = model.generate([3, 4, 5, 6, 7], n_predict=4, temp=0, ignore_eos=True, context=context)
    list(first)
    again = model.generate([3, 4, 5, 9], n_predict=4, temp=0, ignore_eos=True, context=context)
    list(again)
    assert (first.timings.prompt_tokens, again.timings.prompt_tokens) == (5, 1)
    fresh = model.generate([3, 4, 5, 9], n_predict=4, temp=0, ignore_eos=True)
    list(fresh)
    assert again.tokens == fresh.tokens
    same = model.generate([3, 4, 5, 9], n_predict=4, temp=0, ignore_eos=True, context=context)
    list(same)
    assert (same.timings.prompt_tokens, same.tokens) == (1, fresh.tokens)  # the last token is read again for its logits


def test_an_interrupt_is_told(model):
    def interrupt(event):
        if len(generation.tokens) == 2:
            raise KeyboardInterrupt

    generation = model.generate("Hello", n_predict=10, ignore_eos=True, observe=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert generation.stop_reason == "interrupted"
    assert generation.timings.generated_tokens == 2


def test_n_predict_0_reads_the_prompt_and_says_nothing(model):
    generation = model.generate("Hello", n_predict=0)
    assert (list(generation), generation.stop_reason) == ([], "length")
    assert generation.timings.prompt_tokens > 0


def test_what_is_refused(model):
    with pytest.raises(TokenError, match="the prompt is empty"):
        model.generate([])
    with pytest.raises(OptionError, match="n_predict = -2"):
        model.generate("Hello", n_predict=-2)
    with pytest.raises(OptionError, match="no such sampling setting: temperatur"):
        model.generate("Hello", temperatur=1)
    with pytest.raises(OptionError, match="not both"):
        model.generate("Hello", sampling=Sampling(), temp=0)
    assert isinstance(model.generate("Hello", sampling=Sampling(temp=0)), Generation)
