"""Quantising: the older formats bit for bit against the `gguf` package, the K formats against the error of llama.cpp."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from golden.make_quantize_errors import model_tensors, squared_error, tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ops.blocks import FORMATS, QUANTIZERS, quantize
from ops.errors import OptionError, ShapeError

K_FORMATS = ("Q4_K", "Q5_K", "Q6_K")
OTHERS = tuple(name for name in QUANTIZERS if name not in K_FORMATS)
ERRORS = json.loads((Path(__file__).parent / "data" / "quantize_errors.json").read_text())["tensors"]
WORSE = 1.03  # times llama.cpp's squared error: the limit that this project set itself

every_format = pytest.mark.parametrize("name", QUANTIZERS)
every_other = pytest.mark.parametrize("name", OTHERS)
every_k_format = pytest.mark.parametrize("name", K_FORMATS)

any_bits = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))
halves = st.integers(-32, 32).map(lambda n: np.float32(n / 2))  # of a grid whose step is a power of two: ties in the rounding
zeros = st.sampled_from([np.float32(0), np.float32(-0.0), np.float32(1e-45), np.float32(-3e-39)])
extremes = st.sampled_from([np.float32(sign * size) for sign in (-1, 1) for size in (3e38, 65504, 65520, 1e-7)])
numbers = st.floats(-8, 8, width=32)
weights = st.one_of(*(arrays(np.float32, (3, 64), elements=kind) for kind in (any_bits, halves, zeros, extremes, numbers)))


def gguf_blocks(x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):  # infinite scales
        return gguf.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8).reshape(len(x), -1)


def restored(blocks: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]))


@every_other
@given(x=weights)
@example(x=np.tile(np.float32([8, -8, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]), (1, 8)))
@example(x=np.full((2, 32), -2.5, np.float32))
def test_equal_to_the_gguf_package(name: str, x: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(quantize(x, name), gguf_blocks(x, name))


@every_other
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-44, 1e-38, 1e-7, 1.0, 1e4, 1e6, 1e38]))
def test_equal_to_the_gguf_package_on_many_blocks(name: str, seed: int, size: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((40, 96)).clip(-3, 3) * size).astype(np.float32)
    np.testing.assert_array_equal(quantize(x, name), gguf_blocks(x, name))


def assert_close_to_llama_cpp(x: NDArray[np.float32], name: str, recorded: dict[str, float]) -> None:
    energy = np.square(x.astype(np.float64)).sum()
    # 1e-6: the logarithms and exponentials behind the numbers may differ in a last digit between machines
    assert energy == pytest.approx(recorded["energy"], rel=1e-6), "numpy draws other numbers: make the file again"
    assert squared_error(x, quantize(x, name), name) <= WORSE * recorded[name]


@every_k_format
@pytest.mark.parametrize("tensor", tensors())
def test_error_is_at_most_that_of_llama_cpp(name: str, tensor: str) -> None:
    assert_close_to_llama_cpp(tensors()[tensor], name, ERRORS[tensor])


@pytest.fixture(scope="module")
def weights_of_a_model(smollm2: Path) -> dict[str, NDArray[np.float32]]:
    return model_tensors(smollm2)


@every_k_format
def test_error_on_the_weights_of_a_model(name: str, weights_of_a_model: dict[str, NDArray[np.float32]]) -> None:
    for tensor, x in weights_of_a_model.items():
        assert_close_to_llama_cpp(x, name, ERRORS[tensor])


@every_k_format
@given(value=st.floats(0.5, 2.0**10, width=32), sign=st.sampled_from([-1, 1]))
def test_equal_weights(name: str, value: float, sign: int) -> None:
    x = np.full((1, 256), sign * value, np.float32)
    y = restored(quantize(x, name), name)
    # One float16 is rounded, by at most 2**-11 of itself, for it is 2**-14 or more. The rest is rounding in float32.
    assert np.abs(y - x).max() <= value * (2**-11 + 2**-20)


@every_k_format
@given(seed=st.integers(0, 2**32), power=st.integers(-2, 10))
def test_twice_the_weights_are_twice_the_result(name: str, seed: int, power: int) -> None:
    """Exactly, for a power of two changes no digit of a float32, nor of a float16 that is not too small."""
    x = np.random.default_rng(seed).standard_normal((2, 512), dtype=np.float32)
    factor = np.float32(2.0**power)
    np.testing.assert_array_equal(restored(quantize(x * factor, name), name), factor * restored(quantize(x, name), name))


@every_k_format
@settings(max_examples=50)
@given(data=st.data())
def test_any_weights(name: str, data: st.DataObject) -> None:
    """Nothing fails or warns. Infinite weights and NaN make NaN of their own block, and nothing else is anything but finite."""
    x = np.tile(data.draw(weights), (1, 8))
    x[0] = np.where(np.isfinite(x[0]), x[0], 1)
    y = restored(quantize(x, name), name)
    finite = np.isfinite(x).reshape(-1, 256).all(axis=1)
    assert np.isfinite(y.reshape(-1, 256)[finite]).all()
    assert np.isnan(y.reshape(-1, 256)[~finite]).all()


@every_k_format
def test_zero_stays_zero(name: str) -> None:
    assert not restored(quantize(np.zeros((2, 256), np.float32), name), name).any()


@every_k_format
def test_more_than_a_block_can_hold(name: str) -> None:
    """What is too large becomes the largest that fits: 65504 * 63 for a minimum, and at least 65504 * 63 * 15 for a scale."""
    x = np.full((2, 256), 3e38, np.float32)
    x[1] *= -1
    y = restored(quantize(x, name), name)
    assert (y[0] > 6e7).all()
    assert (y[1] < -4e6).all()


@every_format
def test_rows_may_be_quantised_in_any_pieces(name: str) -> None:
    x = np.random.default_rng(3).standard_normal((3, 5, 2**16), dtype=np.float32)  # several chunks
    x.flags.writeable = False  # as a mapped file is
    alone = np.concatenate([quantize(row, name) for row in x.reshape(15, -1)])
    assert alone.shape == (15, FORMATS[name].row_bytes(2**16))
    np.testing.assert_array_equal(quantize(x, name), alone)
    backwards = quantize(x[::-1], FORMATS[name])
    np.testing.assert_array_equal(backwards.reshape(3, 5, -1), alone.reshape(3, 5, -1)[::-1])


@every_format
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(name: str, dtype: Any) -> None:
    x = np.random.default_rng(4).standard_normal((2, 256)).astype(dtype)
    np.testing.assert_array_equal(quantize(x, name), quantize(x.astype(np.float32), name))


@every_format
@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (0,), (0, 3, 512)])
def test_no_weights(name: str, shape: tuple[int, ...]) -> None:
    blocks = quantize(np.empty(shape, np.float32), name)
    assert blocks.shape == (int(np.prod(shape[:-1])), FORMATS[name].row_bytes(shape[-1]))


@every_format
def test_memory(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((2048, 1024), dtype=np.float32)
    tracemalloc.start()
    made = quantize(x, name)
    peak = tracemalloc.get_traced_memory()[1] - made.nbytes
    tracemalloc.stop()
    assert peak < 6 << 20  # the 5 MB that the docstring promises, and not the 8 MB of x


def test_wrong_rows() -> None:
    with pytest.raises(ShapeError, match="Q4_K takes rows of a multiple of 256 weights, not a row of 576"):
        quantize(np.zeros((4, 576), np.float32), "Q4_K")
    with pytest.raises(ShapeError, match="not a single number"):
        quantize(np.float32(1).reshape(()), "F32")


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0_F32", "Q4_1_F32", "Q8_0_F32", "q4_0", "IQ4_NL"])
def test_formats_that_are_not_made(name: str) -> None:
    with pytest.raises(OptionError, match=f"cannot be quantised to {name}: choose one of F32, "):
        quantize(np.zeros((1, 256), np.float32), FORMATS.get(name, name))
