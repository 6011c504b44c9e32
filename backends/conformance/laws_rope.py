"""Laws of rope: what it means to turn. None needs a reference to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import ops

from .apply import Array
from .strategies import FAR_STARTS, LETTERS, STARTS
from .trial import Trial, assert_close, assert_same, law

# The sine and cosine of an angle are rounded once to float32, two products and their sum once more each: 1e-7 of the pair.
# An angle that was itself rounded to float32 is off by 2^-24 of it, which at position 8192 is 2e-4 already.
TURNED = 5e-7


def freqs_of(r: int, base: float) -> NDArray[np.float32]:
    """Su et al. 2021, sec. 3.2.2: the angle by which pair i turns from one position to the next."""
    freqs: NDArray[np.float32] = (base ** (-np.arange(r) / r)).astype(np.float32)
    return freqs


class Rope:
    """What all laws of rope draw: vectors, how many of their components turn, which ones are a pair."""

    def __init__(self, trial: Trial) -> None:
        T = trial.one_of("T", LETTERS["T"])
        h, _, d = trial.heads(T)
        self.r = trial.one_of("r", sorted({d // 2, max(1, d // 4)}, reverse=True))  # all components, or the first half of them
        self.neox = trial.one_of("neox", (False, True))
        self.trial, self.freqs = trial, freqs_of(self.r, trial.one_of("base", (1e4, 5e5)))
        self.shape = T, h, d

    def __call__(self, x: Array, first_position: int) -> Array:
        positions = np.arange(first_position, first_position + len(x))
        return self.trial.apply(ops.rope, x, positions, self.freqs, neox=self.neox)

    def length(self, x: Array) -> Array:
        """Of the pair that a component is in, whose roundings it bears; nothing for a component that is in none."""
        size, (first, second) = np.zeros_like(x), self.pairs(x)
        for part in self.pairs(size):
            part[...] = np.hypot(first, second)
        return size

    def pairs(self, x: Array) -> tuple[Array, Array]:
        """The components that turn together: [T, h, r] each."""
        r = self.r
        return (x[..., :r], x[..., r : 2 * r]) if self.neox else (x[..., 0 : 2 * r : 2], x[..., 1 : 2 * r : 2])


@law("law-rope-norm", "rope")
def rope_norm(trial: Trial) -> None:
    """rope keeps the length of every pair: to turn is not to stretch. What is no pair, beyond 2 r, stays bit for bit."""
    rope = Rope(trial)
    x = trial.array("x", *rope.shape, magnitudes=(1.0, 1e-3, 1e4))
    y = rope(x, trial.one_of("position", FAR_STARTS))
    before, after = (np.hypot(*map(np.float64, rope.pairs(a))).astype(np.float32) for a in (x, y))
    assert_close(after, before, "rope changes the length of a pair", within=TURNED)
    assert_same(y[..., 2 * rope.r :], x[..., 2 * rope.r :], "rope changes components that are not in a pair")


@law("law-rope-relative", "rope")
def rope_relative(trial: Trial) -> None:
    """The product of a query at position a with a key at b depends on a - b only, since turning both by one angle changes no
    angle between them. That is what rope is for; and it holds at position 100,000 if the angles are not rounded to float32."""
    rope = Rope(trial)
    q, k = (trial.array(name, *rope.shape) for name in "qk")
    a, b, further = trial.one_of("a", STARTS), trial.one_of("b", STARTS), trial.one_of("further", FAR_STARTS[1:])
    near, far = (np.einsum("thd,thd->th", rope(q, a + s), rope(k, b + s)) for s in (0, further))
    size = np.linalg.norm(q, axis=-1) * np.linalg.norm(k, axis=-1)
    assert_close(far, near, f"q at {a} times k at {b} changes if both move on by {further}", within=TURNED, size=size)


@law("law-rope-origin", "rope")
def rope_origin(trial: Trial) -> None:
    """At position 0 rope does nothing: the angle is 0, its cosine 1, its sine 0, exactly. And a pair with frequency 0 never
    turns."""
    rope = Rope(trial)
    x = trial.array("x", *rope.shape)
    assert_close(rope(x, 0)[0], x[0], "rope at position 0 is not the identity", within=0)
    rope.freqs = np.zeros_like(rope.freqs)
    turned = rope(x, trial.one_of("position", FAR_STARTS))
    assert_close(turned, np.ascontiguousarray(x), "a pair of frequency 0 turns", within=0)


@law("law-rope-sum", "rope")
def rope_sum(trial: Trial) -> None:
    """A turn to position a and another one to b is the turn to a + b: angles add up. So a position that is one too far, or
    counted from another token, shows."""
    rope = Rope(trial)
    rope.shape = (1, *rope.shape[1:])
    x = trial.array("x", *rope.shape)
    a, b = trial.one_of("a", FAR_STARTS), trial.one_of("b", FAR_STARTS)
    told = f"turned to {a} and then to {b} is not turned to {a + b}"
    assert_close(rope(rope(x, a), b), rope(x, a + b), told, within=2 * TURNED, size=rope.length(x))  # twice the roundings


@law("law-rope-rows", "rope")
def rope_rows(trial: Trial) -> None:
    """A token's rope depends on its own position only, not on which row of the step it is, nor on its head."""
    rope = Rope(trial)
    x, position = trial.array("x", *rope.shape), trial.one_of("position", FAR_STARTS)
    y = rope(x, position)
    t = len(x) - 1
    size = rope.length(x)
    assert_close(y[t:], rope(x[t:], position + t), f"row {t} is not what it is alone", within=TURNED, size=size[t:])
    assert_close(rope(x[:, ::-1], position), y[:, ::-1], "heads in another order", within=TURNED, size=size[:, ::-1])
