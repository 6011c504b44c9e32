"""Wrong in rope: pairs, positions, angles."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy

from .mutant import wrong


def turned(x, angle, neox, r):
    """rope by these angles [T, r]."""
    cos, sin = (f(angle)[:, None, :].astype(np.float32) for f in (np.cos, np.sin))
    first, second = (np.s_[..., :r], np.s_[..., r : 2 * r]) if neox else (np.s_[..., 0 : 2 * r : 2], np.s_[..., 1 : 2 * r : 2])
    y = x.copy()
    y[first], y[second] = x[first] * cos - x[second] * sin, x[first] * sin + x[second] * cos
    return y


@wrong("rope")
class RopePairsSwapped(Numpy):
    """The pairs of GPT-NeoX where LLaMA's were asked for, and the other way round."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        return super().rope(x, positions, freqs, neox=not neox)


@wrong("rope")
class RopeIgnoresNeox(Numpy):
    """Neighbours are a pair, whatever was asked for."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        return super().rope(x, positions, freqs)


@wrong("rope")
class RopeOneFurther(Numpy):
    """Positions are counted from one."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        return super().rope(x, positions + 1, freqs, neox=neox)


@wrong("rope")
class RopeInSinglePrecision(Numpy):
    """Angles rounded to float32: right at the beginning of a text, wrong far into it."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        angle = positions.astype(np.float32)[:, None] * freqs
        return turned(x, angle.astype(np.float64), neox, len(freqs))


@wrong("rope")
class RopeTurnsBack(Numpy):
    """The sign of the sine is wrong."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        return super().rope(x, -positions, freqs, neox=neox)


@wrong("rope")
class RopeFromTheFirstRow(Numpy):
    """Row t stands at positions[0] + t, also where positions are not consecutive."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        return super().rope(x, positions[0] + np.arange(len(x)), freqs, neox=neox)


@wrong("rope")
class RopeAllComponents(Numpy):
    """The components that should stay as they are, beyond 2 r, are cleared."""

    @kernel(ops.rope)
    def rope(self, x, positions, freqs, *, neox=False):
        y = super().rope(x, positions, freqs, neox=neox)
        y[..., 2 * len(freqs) :] = 0
        return y


@wrong("law-rope-origin", "rope")
class RopeRemembersThePosition(Numpy):
    """The cosines of the last step serve again if it began at the same position, though the frequencies are others."""

    def _turn(self, positions, freqs):
        key = (int(positions[0]), len(positions), len(freqs))
        if getattr(self, "_key", None) != key:
            angle = (positions[:, None] * freqs.astype(np.float64))[:, None]
            self._key, self._made = key, np.exp(1j * angle).astype(np.complex64)
        return self._made
