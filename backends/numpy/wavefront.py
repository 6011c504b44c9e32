"""A long step on all cores: its tokens are cut into blocks, and each block runs through the layers on a thread of its own.

Until the rows of the last layer are picked, every op treats each token's row by itself, attention excepted, and attention
looks only back: at the keys and values of earlier tokens. So a block may run at the same time as the one before it, if in each
layer it waits until that one has written its keys and values. In practice it never waits long, since an earlier block has
fewer keys to look at. Compared with threads inside each op, there is nothing to wait for between ops, and each thread's
arrays are small enough to stay in its core's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event, Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.graph import Graph
from ops.tensor import Tensor

from ..base import Backend, Buffer, Observer
from ..plan import Instruction, LoopPlan
from .threads import Threads

SLOWER = 3  # a floating-point operation of attention takes so much longer than one of a product with a weight
# In blocks, every thread prepares each weight for itself, which a block of few tokens does not repay; whole, all threads share
# the products, and one does the rest, which costs more the more threads wait for it. With n threads, blocks of LONG / (n - 1)
# tokens take as long as the whole: 240 for two threads (measured), 34 for eight.
LONG = 240
SHORTEST = 32  # tokens of a block, however many threads there are


class WavefrontPlan(LoopPlan):
    def __init__(self, backend: Backend, graph: Graph, leaves: Mapping[str, Tensor | Buffer], threads: Threads) -> None:
        super().__init__(backend, graph, leaves)
        self._threads = threads
        self._of_tokens = {name for name, value in graph.leaves.items() if value.shape[0] == "T"}
        n_body = next((n for n, i in enumerate(self.program) if not _by_row(i)), len(self.program))
        self._body, self._tail = self.program[:n_body], self.program[n_body:]
        made = {slot: value.shape[0] for i in self._body for slot, value in zip(i.results, i.node.outputs, strict=True)}
        needed = {slot for i in self._tail for slot in i.operands} | set(self.outputs)
        self._crossing = sorted(made.keys() & needed)  # what the blocks' results are put together for
        # a part of a model without attention has nothing to win; what crosses must be rows, to be put together again
        self._can_cut = any(map(_writes, self._body)) and all(made[slot] == "T" for slot in self._crossing)
        self._can_cut &= not any("T" in value.shape[1:] for value in graph.leaves.values())  # inputs are cut into rows
        self._weights = [
            self._bound[slot]
            for i in self._body
            for slot, operand in zip(i.operands, i.node.op.inputs, strict=True)
            if operand.dtype == "weight" and operand.name not in i.node.op.touches
        ]
        one_key, two_keys = (sum(_flops(i, n_keys) for i in self._body) for n_keys in (1, 2))
        self._per_key, self._per_token = two_keys - one_key, 2 * one_key - two_keys  # flops

    def __call__(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None) -> list[Buffer]:
        """One step. A long one runs in blocks, unless someone observes: then op by op, so that each can be timed."""
        lengths = {len(array) for name, array in inputs.items() if name in self._of_tokens}
        n_tokens = min(lengths, default=0)
        n_blocks = min(self._threads.n, n_tokens // SHORTEST)
        is_long = n_tokens * (n_blocks - 1) >= LONG * n_blocks > 0
        if not is_long or not self._can_cut or observe is not None:
            return self._threads.step(lambda: super(WavefrontPlan, self).__call__(inputs, observe))
        self._backend.warm_up(self._weights)  # once for all blocks, before they begin
        values = self.start(inputs)
        for slot, array in self._run_body(inputs, self._cut(inputs["positions"], n_blocks)).items():
            values[slot] = array
        for i in self._tail:
            self.run(i, values)
        return [values[slot] for slot in self.outputs]

    def _cut(self, positions: NDArray[Any], n_blocks: int) -> list[slice]:
        """The tokens in blocks that take equally long: later ones see more keys, so their blocks are shorter."""
        work = np.cumsum(self._per_token + SLOWER * self._per_key * (positions + 1))
        ends = np.searchsorted(work, work[-1] * np.arange(1, n_blocks + 1) / n_blocks, side="left") + 1
        starts = [0, *ends[:-1]]
        return [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]

    def _run_body(self, inputs: Mapping[str, NDArray[Any]], blocks: list[slice]) -> dict[int, Buffer]:
        written = [Semaphore(0) for _ in blocks]  # counts the caches that a block has written
        results: list[dict[int, Buffer]] = [{} for _ in blocks]
        given_up = Event()

        def give_up() -> None:
            given_up.set()
            for semaphore in written:  # no block may wait for ever
                semaphore.release(len(self._body))

        def block(n: int) -> None:
            rows = blocks[n]
            try:
                values = self.start({name: x[rows] if name in self._of_tokens else x for name, x in inputs.items()})
                for i in self._body:
                    if given_up.is_set():
                        return
                    self.run(i, values)
                    if _writes(i):
                        if n > 0:
                            written[n - 1].acquire()
                        written[n].release()  # only now: it tells the next block that all blocks up to here have written
                results[n] = {slot: values[slot] for slot in self._crossing}
            except BaseException:
                give_up()
                raise

        self._threads.together(block, len(blocks), give_up)
        return {slot: np.concatenate([result[slot] for result in results]) for slot in self._crossing}


def _flops(instruction: Instruction, n_keys: int) -> float:
    """For one token that sees so many keys."""
    node = instruction.node
    return node.op.flops_of([v.shape for v in node.inputs], T=1, S=n_keys, C=n_keys)


def _by_row(instruction: Instruction) -> bool:
    """Do each token's results need that token's operands only, and caches?"""
    return all("T" in value.shape for value in instruction.node.outputs) or _writes(instruction)


def _writes(instruction: Instruction) -> bool:
    return any(operand.written for operand in instruction.node.op.inputs)
