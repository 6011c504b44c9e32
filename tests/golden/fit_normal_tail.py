"""The coefficients of backends/gelu.py and backends/device/kernels/normal_tail.c: python tests/golden/fit_normal_tail.py

P(N > a) = exp(-a^2 / 2) * (c1 t + c2 t^2 + ... + c9 t^9) with t = 1 / (1 + 0.35 a), so that the largest relative error for
0 <= a <= 14 is as small as it can be. By Lawson's method (1961): least squares, again and again, each point weighed by the
errors that it had so far. Needs numpy alone, and takes a second. 0.35 is the best slope of 0.15, 0.175 ... 0.5.
"""

import math

import numpy as np

SLOPE, TERMS, LARGEST = 0.35, 9, 14.0

a = LARGEST * (1 - np.cos(np.linspace(0, np.pi, 2001))) / 2  # closer to each other at the ends, where a polynomial needs it
scaled_tail = np.array([math.erfc(v * 0.5**0.5) / 2 * math.exp(v * v / 2) for v in a])
powers = (1 / (1 + SLOPE * a[:, None])) ** np.arange(1, TERMS + 1) / scaled_tail[:, None]  # times coefficients: 1 everywhere
weights = np.ones(len(a))
for _ in range(400):
    root = np.sqrt(weights / weights.max())[:, None]
    coefficients = np.linalg.lstsq(powers * root, root[:, 0], rcond=None)[0]
    errors = abs(powers @ coefficients - 1)
    weights *= errors / errors.max() + 1e-3
print(", ".join(f"{c:.8g}" for c in coefficients.astype(np.float32)))
print(f"relative error {errors.max():.2g}")
