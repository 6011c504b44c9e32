"""Sampling against the definitions of its steps, written out here in plain Python, and llama.cpp's order of them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.errors import OptionError, ShapeError, TinyLlamaError, TokenError
from tinyllama.sampling import Sampler, Sampling, draw, min_p, mirostat, penalties, softmax, top_k, top_p, typical

# The steps add up probabilities in float64, in the order of this file or another: with at most 200 candidates the sums
# differ by less than 200 * 2**-53 = 2e-14.
ROUNDING = 1e-12

logit_lists = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, -math.inf])), min_size=1, max_size=200
).filter(lambda xs: max(xs) > -math.inf)
shares = st.floats(0, 1)


def float32(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def probabilities(logits: list[float]) -> list[float]:
    """The definition: exp(x) / sum of exp(y)."""
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / math.fsum(weights) for w in weights]


def surprises(probs: list[float]) -> list[float]:
    return [-math.log(p) if p > 0 else math.inf for p in probs]


def many(sampling: Sampling, logits: np.ndarray, n: int) -> list[int]:
    sampler = Sampler(sampling, len(logits))
    return [sampler.sample(logits) for _ in range(n)]


# --- the steps ------------------------------------------------------------------------------------------------------


@given(logit_lists, st.floats(0.1, 5))
def test_softmax_is_its_definition(logits: list[float], temp: float) -> None:
    expected = probabilities([x / temp for x in map(float, float32(logits))])
    # exp of two libraries differs in the last bits, and its argument was rounded: |x / temp| <= 600 gives 600 * 2**-53
    np.testing.assert_allclose(softmax(float32(logits), temp), expected, rtol=1e-12, atol=1e-300)


@given(logit_lists, st.integers(-1, 250))
def test_top_k_keeps_the_k_largest_and_of_equals_the_first(logits: list[float], k: int) -> None:
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert top_k(float32(logits), k).tolist() == sorted(order[:k] if k > 0 else order)


@pytest.mark.parametrize("n", [2559, 2560, 2561, 49152, 128256])  # around 64 * 40, where another way begins
def test_top_k_of_a_vocabulary(n: int) -> None:
    logits = np.random.default_rng(n).normal(size=n).astype(np.float32)
    logits[n // 2 :] = logits[: n - n // 2]  # each value twice
    order = np.lexsort((np.arange(n), -logits))
    assert top_k(logits, 40).tolist() == sorted(order[:40].tolist())


@given(logit_lists, shares)
def test_top_p_keeps_the_smallest_nucleus(logits: list[float], p: float) -> None:
    kept = top_p(float32(logits), p).tolist()
    probs = probabilities(logits)
    dropped = set(range(len(logits))) - set(kept)
    total = math.fsum(probs[i] for i in kept)
    assert total >= p - ROUNDING  # it has the mass
    assert len(kept) == 1 or total - min(probs[i] for i in kept) < p + ROUNDING  # and needs its last
    assert all(probs[i] >= probs[j] - ROUNDING for i in kept for j in dropped)


@given(logit_lists, st.floats(0.001, 1))
def test_min_p_keeps_what_is_near_the_likeliest(logits: list[float], p: float) -> None:
    kept = set(min_p(float32(logits), p).tolist())
    probs = probabilities(logits)
    for i, prob in enumerate(probs):
        # compared as float32 logits of up to 30, whose last bit is 2e-6: such near ones may fall either way
        if abs(prob / (p * max(probs)) - 1) > 1e-5:
            assert (i in kept) == (prob >= p * max(probs))


@given(logit_lists, shares)
def test_typical_keeps_what_is_nearest_to_the_entropy(logits: list[float], p: float) -> None:
    kept = typical(float32(logits), p).tolist()
    probs = probabilities(logits)
    dropped = set(range(len(logits))) - set(kept)
    surprise = surprises(probs)
    entropy = math.fsum(q * s for q, s in zip(probs, surprise, strict=True) if q > 0)
    distance = [abs(s - entropy) for s in surprise]
    total = math.fsum(probs[i] for i in kept)
    assert total > p - ROUNDING
    last = max(kept, key=lambda i: distance[i])
    ties = [probs[i] for i in kept if distance[i] >= distance[last] - 1e-9]  # any of these may have come last
    assert len(kept) == 1 or total - max(ties) <= p + ROUNDING
    assert all(distance[i] <= distance[j] + 1e-9 for i in kept for j in dropped)  # sums and logs of 200 terms near 60


def test_top_p_reaches_its_sum_and_typical_passes_it() -> None:
    """llama.cpp, src/llama-sampler.cpp: top-p stops at sum >= p, typical at sum > p. Quarters and halves are exact."""
    assert top_p(np.zeros(4, np.float32), 0.5).tolist() == [0, 1]
    assert typical(np.zeros(4, np.float32), 0.5).tolist() == [0, 1, 2]


@given(logit_lists, st.floats(-5, 40))
def test_mirostat_cuts_at_the_surprise_mu(logits: list[float], mu: float) -> None:
    probs = probabilities(logits)
    kept = set(mirostat(np.array(probs), mu).tolist())
    expected = {i for i, p in enumerate(probs) if p > 0 and -math.log2(p) <= mu - 1e-9}
    allowed = {i for i, p in enumerate(probs) if p > 0 and -math.log2(p) <= mu + 1e-9} or {probs.index(max(probs))}
    assert expected <= kept <= allowed


def test_penalties_are_their_formulas() -> None:
    logits, times = float32([2.0, -2.0, 0.0, 1.0]), float32([1, 2, 3, 1])
    result = penalties(logits, times, repeat=2.0, presence=0.5, frequency=0.25)
    # positive divided, others multiplied; then once presence, and frequency for each time. Exact in binary.
    assert result.tolist() == [1.0 - 0.75, -4.0 - 1.0, 0.0 - 1.25, 0.5 - 0.75]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda ps: sum(ps) > 0.01))
def test_draw_gives_each_index_its_share(weights: list[float]) -> None:
    probs = np.array(weights) / sum(weights)
    n = 1000
    counts = Counter(draw(probs, (i + 0.5) / n) for i in range(n))
    for i, prob in enumerate(probs):  # an interval of length prob holds prob * n of n even points, give or take one
        assert abs(counts[i] - prob * n) <= 1 + 1e-9
        assert prob > 0 or counts[i] == 0
    assert probs[draw(probs, 0.0)] > 0
    assert probs[draw(probs, math.nextafter(1, 0))] > 0


# --- together -------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_llama_cpp() -> None:
    # llama.cpp, common/common.h, struct common_params_sampling
    s = Sampling()
    assert (s.temp, s.top_k, s.top_p, s.min_p, s.typical_p) == (0.8, 40, 0.95, 0.05, 1.0)
    assert (s.repeat_penalty, s.repeat_last_n, s.presence_penalty, s.frequency_penalty) == (1.0, 64, 0.0, 0.0)
    assert (s.mirostat, s.mirostat_tau, s.mirostat_eta) == (0, 5.0, 0.1)
    assert dict(s.logit_bias) == {}


@given(logit_lists, st.integers(0, 50), shares, st.floats(0.01, 1), shares, st.floats(0.1, 3))
def test_steps_follow_each_other_as_in_llama_cpp(
    logits: list[float], k: int, p: float, least: float, typical_share: float, temp: float
) -> None:
    """Each step on the renormalised survivors of the one before; temperature last, so that it changes no set."""
    settings_ = Sampling(top_k=k, top_p=p, min_p=least, typical_p=typical_share, temp=temp)
    alive = list(range(len(logits)))
    for step, limit in ((top_k, k), (typical, typical_share), (top_p, p), (min_p, least)):
        if (step, limit) not in ((typical, 1), (top_p, 1)):
            alive = [alive[i] for i in step(float32([logits[i] for i in alive]), limit)]
    ids, probs = Sampler(settings_, len(logits)).candidates(float32(logits))
    assert ids.tolist() == alive
    np.testing.assert_allclose(probs, probabilities([logits[i] / temp for i in alive]), rtol=1e-12, atol=1e-300)


def test_draws_follow_the_distribution() -> None:
    """Chi-squared over 8 candidates has mean 7 and deviation sqrt(14) = 3.7; beyond 7 + 6 * 3.7 lies less than one run
    in 2000. The seed is fixed, so that this run is always the same."""
    logits = np.linspace(0, 2, 8).astype(np.float32)
    n, counts = 20_000, Counter(many(Sampling(temp=0.7, top_k=0, top_p=1, min_p=0, seed=3), logits, 20_000))
    probs = probabilities([float(x) / 0.7 for x in logits])
    assert sum((counts[i] - n * p) ** 2 / (n * p) for i, p in enumerate(probs)) < 7 + 6 * math.sqrt(14)


def test_a_seed_gives_the_same_tokens_and_no_seed_others() -> None:
    logits = np.zeros(1000, np.float32)
    loose = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert many(Sampling(seed=5, **loose), logits, 20) == many(Sampling(seed=5, **loose), logits, 20)
    assert many(Sampling(seed=5, **loose), logits, 20) != many(Sampling(seed=6, **loose), logits, 20)
    for unset in (None, -1):
        sampler = Sampler(Sampling(seed=unset, **loose), 1000)
        tokens = [sampler.sample(logits) for _ in range(20)]
        assert tokens == many(Sampling(seed=sampler.seed, **loose), logits, 20)  # the seed it tells is the one it used
        assert tokens != many(Sampling(seed=unset, **loose), logits, 20)  # equal by chance once in 1000**20


def test_seed_0_is_a_seed() -> None:
    assert Sampler(Sampling(seed=0), 4).seed == 0


@given(logit_lists, st.floats(-1, 0))
def test_temperature_0_takes_the_largest(logits: list[float], temp: float) -> None:
    sampler = Sampler(Sampling(temp=temp, top_p=0.1, mirostat=2), len(logits))
    assert sampler.sample(float32(logits)) == logits.index(max(logits))


def test_greedy_heeds_bias_and_penalties() -> None:
    logits = float32([1.0, 3.0, 2.9, 0.0])
    assert Sampler(Sampling(temp=0), 4).sample(logits) == 1
    assert Sampler(Sampling(temp=0, logit_bias={1: -math.inf}), 4).sample(logits) == 2
    assert Sampler(Sampling(temp=0, logit_bias={3: 3.5}), 4).sample(logits) == 3
    sampler = Sampler(Sampling(temp=0, repeat_penalty=1.5, repeat_last_n=2), 4)
    sampler.accept(1)
    assert sampler.sample(logits) == 2  # 3 / 1.5 < 2.9
    sampler.accept(2)
    assert sampler.sample(logits) == 1  # 2.0 against 1.93 and 1.0
    sampler.accept(0)
    assert sampler.sample(logits) == 1  # token 1 fell out of the window of 2
    assert logits.tolist() == float32([1.0, 3.0, 2.9, 0.0]).tolist()  # not modified


@pytest.mark.parametrize(("last_n", "counted"), [(0, 0), (1, 0), (3, 1), (5, 2), (-1, 3)])
def test_the_window_of_penalties(last_n: int, counted: int) -> None:
    """History 7 7 0 7 0 0: how often the last n hold token 7, seen through the frequency penalty."""
    sampler = Sampler(Sampling(frequency_penalty=1.0, repeat_last_n=last_n, temp=1, top_k=0, top_p=1, min_p=0), 8)
    for token in (7, 7, 0, 7, 0, 0):
        sampler.accept(token)
    ids, probs = sampler.candidates(np.zeros(8, np.float32))
    assert ids.tolist() == list(range(8))
    assert math.log(probs[1] / probs[7]) == pytest.approx(counted, abs=1e-9)


def test_mirostat_steers_to_its_target() -> None:
    """Basu et al. 2020: the surprise observed converges to tau, whatever the distribution's own."""
    rng = np.random.default_rng(0)
    for tau in (2.0, 4.0):
        sampler = Sampler(Sampling(mirostat=2, mirostat_tau=tau, temp=1.0, seed=1), 5000)
        observed = []
        for _ in range(1500):
            logits = rng.normal(0, 1.5, 5000).astype(np.float32)
            ids, probs = sampler.candidates(logits)
            token = sampler.sample(logits)
            observed.append(-math.log2(probs[ids.tolist().index(token)]))
        # one surprise deviates by about 2 bits, so the mean of 1200 by 0.06; the loop keeps it closer still
        assert np.mean(observed[300:]) == pytest.approx(tau, abs=0.2)


@given(logit_lists, st.integers(0, 2**31), st.sampled_from([0, 2]))
@settings(max_examples=50)
def test_impossible_tokens_are_never_drawn_and_logits_stay(logits: list[float], seed: int, version: int) -> None:
    array = float32(logits)
    array.flags.writeable = False
    sampler = Sampler(Sampling(seed=seed, mirostat=version, repeat_penalty=1.1, logit_bias={0: 0.5}), len(logits))
    for _ in range(5):
        token = sampler.sample(array)
        assert logits[token] > -math.inf
        sampler.accept(token)
    assert array.tolist() == float32(logits).tolist()


# --- what is refused ------------------------------------------------------------------------------------------------

WRONG = [
    ("temp", math.nan), ("temp", math.inf), ("temp", "1"), ("temp", None), ("temp", True), ("top_k", 1.5),
    ("top_k", "40"), ("top_p", 1.5), ("top_p", -0.1), ("top_p", math.nan), ("min_p", 2), ("min_p", math.nan),
    ("typical_p", -1), ("repeat_penalty", 0), ("repeat_penalty", -1), ("repeat_penalty", math.inf),
    ("repeat_last_n", -2), ("repeat_last_n", 0.5), ("presence_penalty", math.nan), ("frequency_penalty", math.inf),
    ("mirostat", 3), ("mirostat", 1), ("mirostat_tau", -1), ("mirostat_eta", math.nan), ("seed", -2), ("seed", 1.5),
    ("logit_bias", {1: math.nan}), ("logit_bias", {1: math.inf}), ("logit_bias", {-1: 0.0}), ("logit_bias", {"a": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        Sampling(**{name: value})
    shown = value if not isinstance(value, dict) else next(iter(value.values() if 1 in value else value))
    assert name in str(caught.value)
    assert repr(shown) in str(caught.value)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(OptionError, match=r"temperature; there are temp, top_k"):
        Sampling.of(temperature=1.0)
    assert Sampling.of(temp=0, seed=1) == Sampling(temp=0, seed=1)


@pytest.mark.parametrize("logits", [[math.nan, 1.0], [1.0, math.nan], [-math.inf, -math.inf], [math.inf, 0.0]])
@pytest.mark.parametrize("temp", [0.0, 0.8])
def test_logits_that_are_no_numbers(logits: list[float], temp: float) -> None:
    with pytest.raises(TinyLlamaError, match="no token can be chosen: the largest logit is"):
        Sampler(Sampling(temp=temp), 2).sample(float32(logits))


def test_tokens_and_logits_of_another_vocabulary() -> None:
    with pytest.raises(TokenError, match="token id 4 is not in the vocabulary"):
        Sampler(Sampling(logit_bias={4: 1.0}), 4)
    with pytest.raises(TokenError, match="token id -1"):
        Sampler(Sampling(), 4).accept(-1)
    with pytest.raises(ShapeError, match=r"\[3\], expected \[4\]"):
        Sampler(Sampling(), 4).sample(np.zeros(3, np.float32))
