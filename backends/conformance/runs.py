"""Whole runs of a small model: what must hold over many steps, in several contexts, in threads, and after a failure."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Barrier, Thread
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import Backend, Event
from .decoder import OPS_USED
from .sessions import Session, cut, drawn_decoder, drawn_tokens
from .trial import Trial, assert_close, assert_same, law

Array = NDArray[Any]
# A layer is some 20 ops one after the other, with sums of up to a thousand products: they are added up in another order if a
# step has another length, and each order has its own roundings, some hundreds of 6e-8.
LAYER = 2e-5
ROUNDS = 3  # threads meet by chance: on a machine that is busy with other things once was too few, in one run of some hundred
CHANCE = random.Random()  # not the one that hypothesis seeds


@law("run-prefill-is-decode", *OPS_USED, examples=25)
def prefill_is_decode(trial: Trial) -> None:
    """A prompt read at once, token by token, or in uneven pieces: the logits are the same. A token's result depends on the
    tokens before it, which the cache remembers, and not on how many came with it."""
    decoder, n = drawn_decoder(trial), trial.one_of("tokens", (2, 5, 17, 34, 67))
    tokens, pieces = drawn_tokens(trial, decoder, n), cut(trial, n)
    at_once, one_by_one, in_pieces = (
        Session(trial.backend, decoder, n + 3).read_in(tokens, lengths) for lengths in ([n], [1] * n, pieces)
    )
    size = np.sqrt(np.square(at_once).mean(keepdims=True))
    assert_close(one_by_one, at_once, f"{n} tokens decoded one by one, and as one prompt", within=LAYER, size=size)
    assert_close(in_pieces, at_once, f"{n} tokens in steps of {pieces}, and as one prompt", within=LAYER, size=size)


@law("run-rewind", *OPS_USED, examples=25, as_it_is=True)
def rewind(trial: Trial) -> None:
    """After a rewind nothing is left of what was read since: other tokens then give the logits that they give in a new context.
    What lies in the cache behind the last position is never looked at."""
    decoder = drawn_decoder(trial)
    kept, gone, new = trial.one_of("kept", (1, 7, 33)), trial.one_of("gone", (1, 5, 40)), trial.one_of("new", (1, 2, 9))
    tokens, others = drawn_tokens(trial, decoder, kept + gone), drawn_tokens(trial, decoder, new, "others")
    session = Session(trial.backend, decoder, kept + gone + new)
    session.read(tokens)
    session.position = kept
    again = np.concatenate([session.read(others), session.read(others[:1])])
    fresh = Session(trial.backend, decoder, kept + new + 1)
    fresh.read(tokens[:kept])
    wanted = np.concatenate([fresh.read(others), fresh.read(others[:1])])
    size = np.sqrt(np.square(wanted).mean(keepdims=True))
    told = f"{kept + gone} tokens read, rewound to {kept}, and {new} others read"
    assert_close(again, wanted, told, within=LAYER, size=size)


@law("run-repeat", *OPS_USED, examples=10, as_it_is=True)
def repeat(trial: Trial) -> None:
    """The same tokens in the same steps give the same logits, bit for bit, in one context and in the next: nothing depends on
    chance, on what ran before, or on which thread was first."""
    decoder, n = drawn_decoder(trial), trial.one_of("tokens", (2, 17, 35))
    tokens, pieces = drawn_tokens(trial, decoder, n), cut(trial, n)
    first = Session(trial.backend, decoder, n).read_in(tokens, pieces)
    other = drawn_decoder(trial, " of other work")
    session = Session(trial.backend, decoder, n + 5)
    for _ in range(3):
        Session(trial.backend, other, 9).read_in(np.arange(9), [8, 1])
        session.position = 0
        assert_same(session.read_in(tokens, pieces), first, f"{n} tokens in steps of {pieces}, read again")


@law("run-warm-up", *OPS_USED, examples=10, as_it_is=True)
def warm_up(trial: Trial) -> None:
    """`warm_up`, before the first step or between two, changes no result: it does beforehand what a step would do once, and
    touches no cache."""
    decoder, n = drawn_decoder(trial), trial.one_of("tokens", (2, 9, 35))
    tokens, before = drawn_tokens(trial, decoder, n), trial.one_of("read before", (0, 1))
    wanted = Session(trial.backend, decoder, n).read_in(tokens, [before, n - before] if before else [n])
    session = Session(trial.backend, decoder, n)
    parts = [session.read(tokens[:before])] if before else []
    session.plan.warm_up(lambda items, told: items)
    parts.append(session.read(tokens[before:]))
    assert_same(np.concatenate(parts), wanted, f"{n} tokens, warmed up after {before}")


def giving_way(backend: Backend) -> Callable[[FrameType, str, Any], Any]:
    """A trace function: now and then between two lines of the backend's Python another thread has its turn, so that a race has
    its chance. Lines of the libraries that it stands on are not looked at: there are a hundred times more of them."""
    classes = [c for c in type(backend).__mro__ if issubclass(c, Backend)]
    folders = tuple({os.path.dirname(sys.modules[c.__module__].__file__ or "") + os.sep for c in classes})

    def give_way(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(folders):
            return None
        if event == "line" and CHANCE.random() < 0.3:
            time.sleep(1e-6)  # of zero seconds the same thread would be awake first
        return give_way

    return give_way


@law("run-contexts", *OPS_USED, examples=8, as_it_is=True)
def contexts(trial: Trial) -> None:
    """Contexts on one backend know nothing of each other: one step here, one there, or all at the same time in threads, each
    gets what it gets alone."""
    decoders = [drawn_decoder(trial)]
    lengths = [[*cut(trial, trial.one_of("tokens", (35, 12))), *[1] * 4]]
    if trial.one_of("the same model", (True, False)):  # and in step: then the same kernels run at the same time
        decoders, lengths = decoders * 2, lengths * 2
    else:
        decoders.append(drawn_decoder(trial, " of the second"))
        lengths.append(cut(trial, 20))
    tokens = [drawn_tokens(trial, d, sum(ls), f"tokens {i}") for i, (d, ls) in enumerate(zip(decoders, lengths, strict=True))]

    def sessions() -> list[Session]:
        return [Session(trial.backend, d, sum(ls)) for d, ls in zip(decoders, lengths, strict=True)]

    alone = [s.read_in(t, ls) for s, t, ls in zip(sessions(), tokens, lengths, strict=True)]

    steps = [_steps(s, t, ls) for s, t, ls in zip(sessions(), tokens, lengths, strict=True)]
    in_turns: list[list[Array]] = [[] for _ in steps]
    for i in range(max(map(len, lengths))):
        for result, step, n_steps in zip(in_turns, steps, map(len, lengths), strict=True):
            if i < n_steps:
                result.append(next(step))
    for parts, wanted in zip(in_turns, alone, strict=True):
        assert_same(np.concatenate(parts), wanted, "contexts in turns, and each alone")

    for _ in range(ROUNDS):
        for found, wanted in zip(_at_once(sessions(), tokens, lengths), alone, strict=True):
            # a library may give fewer threads to each of two products at once, and then add up in another order
            size = np.sqrt(np.square(wanted).mean(keepdims=True))
            assert_close(found, wanted, "contexts in threads, and each alone", within=LAYER, size=size)


def _steps(session: Session, tokens: Array, lengths: Sequence[int]) -> Iterator[Array]:
    end = 0
    for length in lengths:
        end += length
        yield session.read(tokens[end - length : end])


def _at_once(sessions: Sequence[Session], tokens: Sequence[Array], lengths: Sequence[Sequence[int]]) -> list[Array]:
    """Each session in a thread of its own, all beginning each step together as long as all have steps."""
    results: list[list[Array]] = [[] for _ in sessions]
    failures: list[BaseException] = []
    together, n_together = Barrier(len(sessions)), min(map(len, lengths))

    def work(i: int) -> None:
        sys.settrace(giving_way(sessions[i].backend))  # of this thread only
        try:
            steps = _steps(sessions[i], tokens[i], lengths[i])
            for n in range(len(lengths[i])):
                if n < n_together:
                    together.wait()
                results[i].append(next(steps))
        except BaseException as error:
            failures.append(error)
            together.abort()
        finally:
            sys.settrace(None)

    threads = [Thread(target=work, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures[:1]:  # the other thread's is that it waited in vain
        raise AssertionError(f"in one of several threads: {type(failure).__name__}: {failure}") from failure
    return [np.concatenate(parts) for parts in results]


class Stopped(Exception):
    """What an observer raises in the midst of a step."""


@law("run-after-failure", *OPS_USED, examples=10, as_it_is=True)
def after_failure(trial: Trial) -> None:
    """A step that fails leaves the backend usable. If it is stopped in its midst, as when someone presses Ctrl-C, the context
    is as it was: the same step, done again, gives what it should. If it fails for its inputs, a rewind to the start helps."""
    decoder = drawn_decoder(trial)
    tokens, n = drawn_tokens(trial, decoder, 12), trial.one_of("read before", (1, 5))
    wanted = Session(trial.backend, decoder, 12).read_in(tokens, [n, 12 - n])[n:]
    size = np.sqrt(np.square(wanted).mean(keepdims=True))
    session = Session(trial.backend, decoder, 12)
    session.read(tokens[:n])
    left = iter(range(trial.one_of("nodes", (0, 2, 5, 9))))

    def observe(event: Event) -> None:
        if next(left, None) is None:
            raise Stopped

    told = "a step whose observer raised an error"
    try:
        session.read(tokens[n:], observe)
    except Stopped:
        pass
    else:
        raise AssertionError(f"{told} went on")
    assert_close(session.read(tokens[n:]), wanted, f"the step after {told}", within=LAYER, size=size)

    for wrong in ("positions missing", "tokens of two axes", "no array"):
        inputs: dict[str, Any] = session.inputs(tokens[n:])
        if wrong == "positions missing":
            del inputs["positions"]
        else:
            inputs["tokens"] = inputs["tokens"][:, None] if wrong == "tokens of two axes" else None
        with suppress(Exception), np.errstate(all="ignore"):  # which error, if any, is the backend's own matter
            session.plan(inputs)
        session.position = 0
        again = session.read_in(tokens, [n, 12 - n])[n:]
        assert_close(again, wanted, f"after a step that was wrong ({wrong})", within=LAYER, size=size)
