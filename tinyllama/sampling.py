"""From logits to the next token.

The steps and their order are llama.cpp's (common/sampling.cpp): logit bias, penalties, top-k, typical, top-p, min-p,
temperature, draw. Each step that cuts takes the logits of the candidates and gives back the indices of those that stay,
in ascending order; what follows it sees the distribution of these alone. So candidates are always in the vocabulary's
order, and a draw does not depend on which of two nearly equal logits rounding put first.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ops
from ops.errors import OptionError, ShapeError, TinyLlamaError, TokenError

Logits = NDArray[np.float32]
Indices = NDArray[np.intp]

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)

# parameter -> type, smallest and largest value, and how a sentence calls that range
_ALLOWED: dict[str, tuple[type, float, float, str]] = {
    "temp": (Real, -_LARGEST, _LARGEST, "a finite number (0 or less takes the likeliest token)"),
    "top_k": (Integral, -math.inf, math.inf, "a whole number (0 or less keeps all tokens)"),
    "top_p": (Real, 0, 1, "a number from 0 to 1 (1 keeps all tokens)"),
    "min_p": (Real, 0, 1, "a number from 0 to 1 (0 keeps all tokens)"),
    "typical_p": (Real, 0, 1, "a number from 0 to 1 (1 keeps all tokens)"),
    "repeat_penalty": (Real, _SMALLEST, _LARGEST, "a finite number above 0 (1 changes nothing)"),
    "repeat_last_n": (Integral, -1, 2**31 - 1, "a whole number of 0 or more, or -1 for all tokens"),
    "presence_penalty": (Real, -_LARGEST, _LARGEST, "a finite number (0 changes nothing)"),
    "frequency_penalty": (Real, -_LARGEST, _LARGEST, "a finite number (0 changes nothing)"),
    "mirostat": (Integral, 0, 2, "0 (off) or 2"),
    "mirostat_tau": (Real, 0, _LARGEST, "a finite number of 0 or more (bits of surprise)"),
    "mirostat_eta": (Real, 0, _LARGEST, "a finite number of 0 or more (a learning rate)"),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token: llama.cpp's names and defaults (common/common.h). OptionError: out of range."""

    temp: float = 0.8  # below 1: surer; above: more varied; 0 or less: always the likeliest token
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # how many tokens back the three penalties look; -1: all
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0  # --mirostat-ent: the surprise aimed at, in bits per token
    mirostat_eta: float = 0.1  # --mirostat-lr
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token -> what to add to its logit; -inf bans it
    seed: int | None = None  # None or -1: a random one

    def __post_init__(self) -> None:
        for name, (kind, low, high, told) in _ALLOWED.items():
            _check(name, getattr(self, name), kind, low, high, told)
        if self.mirostat == 1:
            raise OptionError("mirostat = 1 is not offered: use mirostat = 2, the same authors' simpler algorithm")
        if self.seed is not None:
            _check("seed", self.seed, Integral, -1, math.inf, "a whole number of 0 or more, or -1 for a random one")
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(f"logit_bias = {self.logit_bias!r} is not allowed: it must map token ids to numbers")
        for token, bias in self.logit_bias.items():
            _check("a token of logit_bias", token, Integral, 0, math.inf, "a token id, a whole number of 0 or more")
            _check(f"logit_bias[{token}]", bias, Real, -math.inf, _LARGEST, "a number, or -inf to ban the token")

    @classmethod
    def of(cls, **settings: Any) -> Sampling:
        """Sampling(**settings), but an unknown name is an OptionError that tells the known ones."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise OptionError(f"no such sampling setting: {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**settings)


def _check(name: str, value: Any, kind: type, low: float, high: float, told: str) -> None:
    # `low <= value` is false for NaN, so NaN is in no range; True and False are numbers only by accident of Python
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise OptionError(f"{name} = {value!r} is not allowed: it must be {told}")


class Sampler:
    """Sampling at work: remembers the tokens accepted (for the penalties), the random generator and mirostat's state.

        sampler = Sampler(Sampling(temp=0.7, seed=1), n_vocab)
        for token in prompt: sampler.accept(token)     # the prompt counts as repetition too, as in llama.cpp
        token = sampler.sample(logits); sampler.accept(token)

    A seed gives the same tokens on every run: numpy's PCG64, one draw per token.
    """

    def __init__(self, sampling: Sampling, n_vocab: int) -> None:
        self.sampling = sampling
        self.n_vocab = n_vocab
        for token in sampling.logit_bias:
            self._check_token(token, "logit_bias")
        random = sampling.seed is None or sampling.seed == -1
        self.seed = int(np.random.default_rng().integers(2**32)) if random else int(sampling.seed or 0)
        self._rng = np.random.Generator(np.random.PCG64(self.seed))
        self._last: deque[int] = deque(maxlen=None if sampling.repeat_last_n == -1 else sampling.repeat_last_n)
        self._mu = 2 * sampling.mirostat_tau  # the largest surprise that mirostat lets through, in bits

    def accept(self, token: int) -> None:
        """Count this token as said. TokenError if it is not of the vocabulary."""
        self._check_token(token, "accept")
        self._last.append(int(token))

    @property
    def n_largest(self) -> int:
        """So many of the largest logits are all that the next token depends on; 0: it depends on all logits."""
        s = self.sampling
        if s.logit_bias or (self._last.maxlen != 0 and _penalises(s)):
            return 0
        if s.temp <= 0:
            return 1
        return s.top_k if 0 < s.top_k < self.n_vocab and not s.mirostat else 0

    def sample(self, logits: Logits, ids: Indices | None = None) -> int:
        """The next token, given logits float32[n_vocab], which are not changed. It is not accepted yet.

        ids: whose logits these are, if they are only the `n_largest` largest ones, the largest first, as `Context.eval_top`
        gives them. The token is the same.

        ShapeError for another shape; TinyLlamaError if the largest logit is not a finite number.
        """
        ids, probs = self.candidates(logits, ids)
        chosen = draw(probs, self._rng.random())
        if self.sampling.mirostat and self.sampling.temp > 0:
            surprise = -math.log2(probs[chosen])
            self._mu -= self.sampling.mirostat_eta * (surprise - self.sampling.mirostat_tau)
        return int(ids[chosen])

    def candidates(self, logits: Logits, ids: Indices | None = None) -> tuple[Indices, NDArray[np.float64]]:
        """What `sample` draws from: token ids [n] in ascending order, and their probabilities [n], whose sum is 1."""
        s = self.sampling
        if ids is not None:
            _check_largest(logits[0])
            order = np.argsort(ids)
            return self._cut(ids[order], logits[order])
        logits = self._adjusted(logits)
        likeliest = np.array([logits.argmax()])
        _check_largest(logits[likeliest[0]])  # argmax finds a NaN before any number
        if s.temp <= 0:  # every step below keeps the likeliest but typical, which is not asked for with temperature 0
            return self._cut(likeliest, logits[likeliest])
        if s.mirostat:
            probs = softmax(logits, s.temp)
            ids = mirostat(probs, self._mu)
            return ids, probs[ids] / probs[ids].sum()
        ids = top_k(logits, s.top_k)
        return self._cut(ids, logits[ids])

    def _cut(self, ids: Indices, logits: Logits) -> tuple[Indices, NDArray[np.float64]]:
        """What the steps after top-k leave of tokens in ascending order, and their probabilities."""
        s = self.sampling
        if len(ids) == 1:
            return ids, np.ones(1)
        cuts: tuple[tuple[Callable[[Logits, float], Indices], float, bool], ...] = (
            (typical, s.typical_p, s.typical_p < 1),
            (top_p, s.top_p, s.top_p < 1),
            (min_p, s.min_p, s.min_p > 0),
        )
        for cut, limit, wanted in cuts:
            if wanted:
                kept = cut(logits, limit)
                ids, logits = ids[kept], logits[kept]
        return ids, softmax(logits, s.temp)

    def _adjusted(self, logits: Logits) -> Logits:
        """After logit bias and penalties: a copy where there are any, else the logits themselves."""
        s = self.sampling
        if np.shape(logits) != (self.n_vocab,):
            raise ShapeError(f"logits have shape {list(np.shape(logits))}, expected [{self.n_vocab}] (n_vocab)")
        if s.logit_bias:
            logits = logits.copy()
            for token, bias in s.logit_bias.items():
                logits[token] += np.float32(bias)
        if self._last and _penalises(s):
            counts = Counter(self._last)
            said, times = np.array(list(counts)), np.array(list(counts.values()), np.float32)
            logits = logits.copy()
            logits[said] = penalties(logits[said], times, s.repeat_penalty, s.presence_penalty, s.frequency_penalty)
        return logits

    def _check_token(self, token: int, where: str) -> None:
        if not 0 <= token < self.n_vocab:
            raise TokenError(f"{where}: token id {token} is not in the vocabulary (0 to {self.n_vocab - 1})")


def _penalises(s: Sampling) -> bool:
    return (s.repeat_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0)


def _check_largest(logit: np.float32) -> None:
    if not np.isfinite(logit):
        raise TinyLlamaError(
            f"no token can be chosen: the largest logit is {logit}; the model's weights are "
            "damaged, its computation went wrong, or logit_bias bans every token"
        )


def softmax(logits: Logits, temp: float = 1.0) -> NDArray[np.float64]:
    """exp(logits / temp), scaled to the sum 1. The largest is subtracted first, so that nothing overflows."""
    weights: NDArray[np.float64] = np.exp((logits.astype(np.float64) - float(logits.max())) / temp)
    weights /= weights.sum()
    return weights


def penalties(logits: Logits, times: Logits, repeat: float, presence: float, frequency: float) -> Logits:
    """The logits of tokens said before, `times` each, made smaller.

    The repetition penalty (Keskar et al. 2019, "CTRL", arXiv:1909.05858) divides a positive logit; it multiplies a
    negative one, which the paper's division would make likelier. Presence and frequency penalties are the OpenAI API's.
    """
    penalised: Logits = np.where(logits > 0, logits / np.float32(repeat), logits * np.float32(repeat))
    penalised -= times * np.float32(frequency) + np.float32(presence)
    return penalised


def top_k(logits: Logits, k: int) -> Indices:
    """The k largest logits (Fan et al. 2018, arXiv:1805.04833); of equal ones the lower ids. k <= 0: all."""
    if not 0 < k < len(logits):
        return np.arange(len(logits))
    _, ids = ops.top_k(logits[None], k=k)
    return np.sort(ids[0])


def top_p(logits: Logits, p: float) -> Indices:
    """The fewest tokens whose probabilities, largest first, add up to p (Holtzman et al. 2019, arXiv:1904.09751)."""
    probs = softmax(logits)
    able = np.flatnonzero(probs >= (1 - p) / len(probs))  # the others together have less than 1 - p: not worth sorting
    order = able[np.argsort(-probs[able], kind="stable")]
    n = 1 + int(np.searchsorted(np.cumsum(probs[order]), p))
    return np.sort(order[:n])


def min_p(logits: Logits, p: float) -> Indices:
    """Tokens at least p times as probable as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    return np.flatnonzero(logits >= logits.max() + np.log(np.float32(p)))


def typical(logits: Logits, p: float) -> Indices:
    """The fewest tokens whose probabilities add up to more than p, those first whose surprise -ln(prob) is closest to
    the entropy, the surprise to be expected (Meister et al. 2022, "Locally typical sampling", arXiv:2202.00666)."""
    probs = softmax(logits)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probs)
    entropy = np.sum(probs * np.where(probs > 0, surprise, 0))
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    n = 1 + int(np.searchsorted(np.cumsum(probs[order]), p, side="right"))
    return np.sort(order[:n])


def mirostat(probs: NDArray[np.float64], mu: float) -> Indices:
    """Tokens whose surprise -log2(prob) is at most mu bits, or else the likeliest (Basu et al. 2020, "Mirostat",
    arXiv:2007.14966, in its authors' version 2). After each draw mu moves so that the surprise stays near tau."""
    ids = np.flatnonzero(probs >= 2.0 ** -max(mu, 0.0))
    return ids if len(ids) else np.array([probs.argmax()])


def draw(probs: NDArray[np.float64], r: float) -> int:
    """The index i that a uniform r of [0, 1) falls on when the interval is divided into parts of the sizes probs[i]."""
    edges = np.cumsum(probs)
    return int(np.searchsorted(edges, r * edges[-1], side="right"))
