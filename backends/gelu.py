"""GELU in float32, of functions that every array library has: erfc is not among them.

gelu(x) = x * P(N <= x), where N is a standard normal number. With a = |x| and the tail P(N > a), which is also P(N <= -a),

    gelu(x) = max(x, 0) - a * P(N > a)
    P(N > a) = exp(-a^2 / 2) * polynomial(t),     t = 1 / (1 + 0.35 a)

and nothing cancels: for x > 0 the difference is at least half of x. The form of the tail is Hastings' (1955; Abramowitz &
Stegun 7.1.26, where five terms hold the absolute error below 1.5e-7). These nine hold the relative error below 4e-8, half a
rounding of float32, for a up to 14, after which float32 has no more numbers; tests/golden/fit_normal_tail.py finds them.
"""

from __future__ import annotations

from typing import Any

SLOPE = 0.35
TERMS = (  # of t, t^2 ... t^9
    0.13962141, 0.13986187, 0.1198329, 0.10550788, -0.023109511, 0.15917364, -0.25571376, 0.14397143, -0.029145872,
)  # fmt: skip


def gelu(x: Any, xp: Any) -> Any:
    """gelu of an array of float32 with the functions of `xp`. It is off by at most 10 roundings, however small the result."""
    a = xp.clip(xp.abs(x), 0.0, 15.0)  # beyond, the tail is 0; and no inf * 0 arises
    t = 1 / (1 + SLOPE * a)
    tail = TERMS[-1] * t
    for term in TERMS[-2::-1]:
        tail += term
        tail *= t
    # exp of a number that is rounded is off by so much of a rounding as the number is large. So a^2 is taken in two parts: the
    # square of `near`, which has 11 bits, is exact, and what is left is small.
    near = xp.round(a * 128) / 128
    tail *= xp.exp(near * near * -0.5)
    tail *= xp.exp((near - a) * (near + a) * 0.5)
    return xp.clip(x, 0.0, None) - a * tail
