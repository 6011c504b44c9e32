"""Wrong over several steps: plans, state between contexts and threads, chance, leaks, failures."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy
from backends.plan import LoopPlan

from .mutant import wrong

RUNS = ("graph-layer-f32", "run-", "contract-two-plans")


class Plain(Numpy):
    """Right: numpy with the plain plan, in which a mutant can get one thing wrong."""

    Plan = LoopPlan

    def compile(self, graph, leaves, sizes=None):
        return self.Plan(self, graph, leaves)


@wrong(*RUNS)
class ForgetsRebind(Plain):
    """The plan goes on with the cache as it was before it grew."""

    class Plan(LoopPlan):
        def rebind(self, name, buffer):
            pass


@wrong(*RUNS)
class RebindsOneCache(Plain):
    """Of several caches that grew, the plan takes the first."""

    class Plan(LoopPlan):
        def rebind(self, name, buffer):
            if not hasattr(self, "_done"):
                self._done = True
                super().rebind(name, buffer)


@wrong("contract-two-plans")
class FirstPositions(Plain):
    """Positions are bound at the first step of each length."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            first = self.__dict__.setdefault("_first", {})
            if "positions" in inputs:
                T = len(inputs["positions"])
                inputs = {**inputs, "positions": first.setdefault(T, np.array(inputs["positions"]))}
            return super().__call__(inputs, observe)


@wrong("run-prefill", *RUNS)
class LastLength(Plain):
    """A shorter step than the one before leaves some of its tokens in place: one stale row of logits is picked."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            before, self._before = getattr(self, "_before", 0), len(inputs.get("positions", ()))
            if before > self._before > 1 and "tokens" in inputs:
                inputs = {**inputs, "tokens": np.roll(inputs["tokens"], 1)}
            return super().__call__(inputs, observe)


@wrong(*RUNS)
class FreesTooEarly(Plain):
    """A value's memory is used again before its last use: planned lifetimes end one node early if there are many tokens."""

    class Plan(LoopPlan):
        def run(self, i, values, observe=None):
            super().run(i, values, observe)
            if i.node.op.name == "add" and len(values[i.results[0]]) > 32:
                values[i.results[0]] = values[i.results[0]].copy()
                values[i.results[0]][-1] *= np.float32(1.01)


@wrong("graph-observed")
class ObservedOnlyOnce(Plain):
    """An observer is told of the first step only."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            seen, self._seen = getattr(self, "_seen", False), True
            return super().__call__(inputs, None if seen else observe)


@wrong("graph-unfused")
class FusesAllTheSame(Numpy):
    """Options.fuse is not looked at."""

    def fused(self, graph):
        from ops.fusion import fuse
        from ops.op import OPS

        return fuse(graph, [op for op in OPS.values() if op.fused and self.kernel_of(op)])


@wrong("contract-two-plans", "run-contexts")
class OneContextAtATime(Plain):
    """The number of keys is kept in the backend, and counted on in decoding: a second context gets the first one's."""

    @kernel(ops.attention)
    def attention(self, q, keys, values, positions, *, scale):
        if len(q) > 1 or positions[0] == 0:
            self._n_keys = len(keys)
        else:
            self._n_keys = getattr(self, "_n_keys", 0) + 1
        n = min(max(self._n_keys, 1), len(keys))
        return super().attention(q, keys[:n], values[:n], positions, scale=scale)


@wrong("run-contexts")
class SharedScratch(Plain):
    """Two threads write to one buffer between the nodes of a step."""

    @kernel(ops.swiglu)
    def swiglu(self, gate, up):
        self._scratch = ops.silu.formula(gate)
        time.sleep(0)  # another thread's turn
        made = self._scratch
        return (made if made.shape == up.shape else ops.silu.formula(gate)) * up


@wrong("run-contexts")
class SharedArray(Plain):
    """A kernel keeps an array for what it has half done, and all threads use it."""

    @kernel(ops.swiglu)
    def swiglu(self, gate, up):
        kept = self.__dict__.setdefault("_kept", {}).setdefault(gate.shape, np.empty(gate.shape, np.float32))
        np.negative(gate, out=kept)
        np.exp(kept, out=kept)
        np.add(kept, 1, out=kept)
        np.divide(gate, kept, out=kept)
        return kept * up


@wrong("run-warm-up")
class WarmUpWritesToTheCache(Plain):
    """Kernels are tried with the caches that are in use."""

    class Plan(LoopPlan):
        def warm_up(self, progress):
            for slot in {i.operands[0] for i in self.program if i.node.op.name == "kv_write"}:
                self._bound[slot][:1] = 1


@wrong("law-same-bits-add", "add")
class Race(Plain):
    """Now and then two work-items add to the same place."""

    @kernel(ops.add)
    def add(self, a, b):
        y = a + b
        if random.SystemRandom().random() < 0.1:
            y[-1, -1] += 1
        return y


@wrong("law-same-bits-matmul", "run-repeat")
class OrderByChance(Plain):
    """Sums are added up in an order that differs from call to call, as with atomic additions."""

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        order = np.random.default_rng().permutation(x.shape[1])
        return x[:, order] @ weight.dequantize()[:, order].T


@wrong("run-memory")
class LeaksBuffers(Plain):
    """Each step leaves an array behind."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            outputs = super().__call__(inputs, observe)
            self._backend.__dict__.setdefault("_left", []).append(outputs[-1])
            return outputs


@wrong("run-memory")
class LeaksOnTheDevice(Plain):
    """Each step takes memory of the device that is not given back."""

    taken = 0

    def memory_used(self):
        return self.taken

    @kernel(ops.swiglu)
    def swiglu(self, gate, up):
        self.taken += gate.nbytes
        return super().swiglu(gate, up)


@wrong("run-memory")
class LeaksEvents(Plain):
    """A tuple of times for each op, for a profile that nobody asked for."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        self.__dict__.setdefault("_times", []).append((time.perf_counter(), "rmsnorm", len(x)))
        return super().rmsnorm(x, weight, eps=eps)


@wrong("run-memory-dropped")
class KeepsPlans(Plain):
    """Every plan is remembered, with its caches."""

    def compile(self, graph, leaves, sizes=None):
        plan = super().compile(graph, leaves, sizes)
        self.__dict__.setdefault("_plans", []).append(plan)
        return plan


@wrong("run-memory-dropped")
class KeepsWeights(Plain):
    """Weights outlive the model that they belong to."""

    def weight(self, tensor):
        self.__dict__.setdefault("_kept", []).append(tensor)
        return tensor


@wrong("run-after-failure")
class BusyForEver(Plain):
    """A step that fails leaves the backend marked as busy."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            if getattr(self._backend, "_busy", False):
                raise RuntimeError("a step is running")
            self._backend._busy = True
            outputs = super().__call__(inputs, observe)
            self._backend._busy = False
            return outputs


@wrong("run-after-failure")
class SwallowsErrors(Plain):
    """What an observer raises is lost, and with it Ctrl-C."""

    class Plan(LoopPlan):
        def __call__(self, inputs, observe=None):
            def careful(event):
                with suppress(Exception):
                    observe(event)

            return super().__call__(inputs, observe and careful)
