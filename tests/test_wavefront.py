"""A long step in blocks of tokens: the same numbers, whatever the number of threads, and no thread left waiting."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from backends import Options
from backends.numpy import Numpy
from backends.numpy.threads import Threads
from ops.errors import BackendError
from tinyllama import Model

TINY = Path(__file__).parent / "data" / "tiny" / "llama-gqa-tied.gguf"
TOKENS = np.random.default_rng(0).integers(0, 300, 600).tolist()


def load(n_threads: int) -> Model:
    return Model.load(TINY, backend="numpy", n_threads=n_threads, n_ctx=1000)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """One thread runs the step whole: no blocks, and none of the code that is tested here."""
    return load(1).context().eval(TOKENS, "all")


@pytest.mark.parametrize("n_threads", [2, 3, 8, 300])
def test_blocks_give_the_same_logits_at_every_position(truth, n_threads):
    context = load(n_threads).context(n_batch=600)
    got = context.eval(TOKENS, "all")
    # other shapes of the same products: roundings of float32, over sums of up to 600 keys
    np.testing.assert_allclose(got, truth, atol=1e-5 * np.abs(truth).max())
    context.rewind(100)  # and again from the middle, with keys in the cache
    np.testing.assert_allclose(context.eval(TOKENS[100:]), truth[-1], atol=1e-5 * np.abs(truth).max())


def test_blocks_cover_all_tokens_and_later_ones_are_shorter():
    plan = load(4).context()._executor._segments[0][2]
    blocks = plan._cut(np.arange(500, 800), 4)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == 300
    lengths = [b.stop - b.start for b in blocks]
    assert lengths == sorted(lengths, reverse=True)


def test_an_error_in_one_block_ends_the_step(monkeypatch):
    model = load(3)
    context = model.context(n_batch=600)
    main = threading.current_thread()

    def fail(self, x, positions, freqs, *, neox=False):
        if threading.current_thread() is not main:
            raise ZeroDivisionError("in a block")
        return x

    monkeypatch.setattr(model.backend, "rope", fail.__get__(model.backend))
    broken = model.context(n_batch=600)
    with pytest.raises(BackendError, match="backend 'numpy' failed in a step: ZeroDivisionError: in a block"):
        broken.eval(TOKENS)
    assert broken.tokens == []
    monkeypatch.undo()
    assert np.isfinite(context.eval(TOKENS)).all()  # the threads are free again


def outcome(context) -> BaseException | None:
    """What `eval` raises; it must return at all."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            context.eval(TOKENS)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a block waits for ever"
    return raised[0] if raised else None


@pytest.mark.parametrize("at", [1, 2, 3])
def test_no_block_waits_for_one_that_never_began(at, monkeypatch):
    model = load(4)
    context = model.context(n_batch=600)
    pool, calls = model.backend.threads._pool, []
    submit = pool.submit

    def fail(*args):
        calls.append(args)
        if len(calls) == at:
            raise RuntimeError("can't start new thread")
        return submit(*args)

    context.warm_up()
    monkeypatch.setattr(pool, "submit", fail)
    assert "can't start new thread" in str(outcome(context))
    monkeypatch.undo()
    assert outcome(context) is None


def test_no_block_waits_for_one_that_failed_at_its_start(monkeypatch):
    model = load(4)
    context = model.context(n_batch=600)
    context.warm_up()
    upload, calls = model.backend.upload, []

    def fail(array):
        calls.append(array)
        if len(calls) == 5:
            raise MemoryError
        return upload(array)

    monkeypatch.setattr(model.backend, "upload", fail)
    assert isinstance(outcome(context), MemoryError)
    monkeypatch.undo()
    assert outcome(context) is None


def test_an_interrupt_stops_all_blocks(monkeypatch):
    model = load(4)
    context = model.context(n_batch=600)
    attention, ran = model.backend.attention, []

    def interrupt(*args, **attrs):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        ran.append(threading.current_thread())
        return attention(*args, **attrs)

    monkeypatch.setattr(model.backend, "attention", interrupt)
    broken = model.context(n_batch=600)
    with pytest.raises(KeyboardInterrupt):
        broken.eval(TOKENS)
    after = len(ran)
    assert broken.tokens == []
    monkeypatch.undo()
    assert np.isfinite(context.eval(TOKENS)).all()
    assert len(ran) == after  # nothing was left running


def test_two_contexts_in_two_threads_at_once(truth):
    model, got = load(3), [None] * 3

    def work(n):
        context = model.context(n_batch=600)
        for _ in range(5):
            context.rewind(0)
            got[n] = context.eval(TOKENS, "all")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for logits in got:
        np.testing.assert_allclose(logits, truth, atol=1e-5 * np.abs(truth).max())  # as above


def test_two_contexts_may_be_the_first_to_use_the_weights(truth):
    """A long step, whose blocks convert weights, beside a short one that converts the same."""
    for _ in range(20):
        model = load(2)
        threads = [threading.Thread(target=model.context().eval, args=(t,), daemon=True) for t in (TOKENS, TOKENS[:1])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def test_weights_may_be_converted_inside_a_block(truth):
    """The first step converts weights on all threads, and is itself on all threads."""
    for budget in (0, None):
        backend = Numpy(Options(n_threads=3, weights_memory=budget))
        got = Model.load(TINY, backend=backend, n_ctx=1000).context(n_batch=600).eval(TOKENS, "all")
        np.testing.assert_allclose(got, truth, atol=1e-5 * np.abs(truth).max())  # as above


def test_each_part_is_done_once_also_from_inside():
    threads, done, lock = Threads(4), [], threading.Lock()

    def part(s):
        with lock:
            done.append(s.start)

    threads.each(part, [slice(i, i + 1) for i in range(50)])
    assert sorted(done) == list(range(50))
    done.clear()
    threads.together(lambda n: threads.each(part, [slice(n, n + 1)]), 4)
    assert sorted(done) == [0, 1, 2, 3]
