"""The CUDA backend where there is no GPU: what it says is missing, which device it takes, and its products through OpenCL.

Its kernels are compiled in test_cuda_sources.py; that they compute the right thing is tested through OpenCL, which shares them.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import ops
from backends import Options, get_backend
from backends.cupy import devices, products
from ops.errors import BackendError
from ops.tensor import Tensor


class CudaError(Exception):
    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status


class Driver:
    """What the backend asks of cupy.cuda.runtime, answered as a machine would that has these GPUs."""

    CUDARuntimeError = CudaError

    def __init__(self, *names: str, driver: int = 13000, error: CudaError | None = None) -> None:
        self._names, self._driver, self._error = names, driver, error

    def getDeviceCount(self) -> int:
        if self._error:
            raise self._error
        return len(self._names)

    def getDeviceProperties(self, number: int) -> dict:
        return {
            "name": self._names[number].encode(),
            "totalGlobalMem": 24 << 30,
            "maxThreadsPerBlock": 1024,
            "sharedMemPerBlock": 48 << 10,
        }

    def driverGetVersion(self) -> int:
        return self._driver

    def runtimeGetVersion(self) -> int:
        return 13020

    def memGetInfo(self) -> tuple[int, int]:
        return 20 << 30, 24 << 30


class Entered:
    """cupy.cuda.Device(number), which is a context."""

    def __init__(self, number: int) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def pretend(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=driver, Device=Entered)))


def test_to_import_it_needs_no_cupy():
    code = "import sys; sys.modules['cupy'] = None; import backends.cupy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_cupy_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"needs CuPy, which cannot be imported .* pip install .tinyllama\[cupy13\]"):
        get_backend("backends.cupy:CuPy")


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (Driver(driver=0, error=CudaError(35, "insufficient")), "there is no NVIDIA driver: install one"),
        (
            Driver(driver=12040, error=CudaError(35, "insufficient")),
            r"is for CUDA 12\.4, CuPy for 13\.2: update the driver, or pip",
        ),
        (Driver(error=CudaError(100, "none")), "the NVIDIA driver finds no GPU: `nvidia-smi` should list one"),
        (Driver(error=CudaError(999, "unknown\nerror")), "cannot be used here: unknown error"),
    ],
    ids=["no driver", "old driver", "no GPU", "other"],
)
def test_what_is_missing_below_cupy_is_told_in_a_sentence(monkeypatch, driver, told):
    pretend(monkeypatch, driver)
    for ask in (devices.found, lambda: get_backend("backends.cupy:CuPy")):
        with pytest.raises(BackendError, match=told) as error:
            ask()
        assert "\n" not in str(error.value)


def test_devices_are_listed_and_chosen_by_number_or_name(monkeypatch):
    pretend(monkeypatch, Driver("NVIDIA T4", "NVIDIA H100"))
    listed = devices.found()
    assert [(d.name, d.kind, d.driver) for d in listed] == [
        ("NVIDIA T4", "GPU", "CUDA 13.0"),
        ("NVIDIA H100", "GPU", "CUDA 13.0"),
    ]
    assert [devices.chosen(wanted) for wanted in (None, "1", "h100", "t4")] == [0, 1, 1, 0]
    for wanted in ("2", "a100"):
        with pytest.raises(BackendError, match=f"no CUDA device '{wanted}': there are 0: NVIDIA T4, 1: NVIDIA H100"):
            devices.chosen(wanted)


def test_memory_is_what_is_free_within_what_the_user_allows(monkeypatch):
    pretend(monkeypatch, Driver("NVIDIA T4"))
    assert devices.limits(0, Options()).memory == (20 << 30) - devices.RESERVED
    assert devices.limits(0, Options(device_memory=1 << 30)).memory == 1 << 30
    with pytest.raises(BackendError, match="--device-features cpu: cupy has kernels for 'gpu' only"):
        devices.limits(0, Options(device_features="cpu"))


def test_large_products_cover_all_rows_whatever_fits_in_a_chunk(monkeypatch):
    """On OpenCL, with numpy in the place of cuBLAS: the launches and the memory are those of CUDA."""
    try:
        device = get_backend("opencl", Options(device_features="gpu"))
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(products, "CHUNK", 64 * 40)  # 40 rows of 64 weights
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (100, 2, 34), np.uint8)
    blocks[..., :2] = np.array([0.01], np.float16).view(np.uint8)  # Q8_0: a scale and 32 int8
    tensor = Tensor("w", (100, 64), ops.FORMATS["Q8_0"], blocks.reshape(100, 68))
    x, weight = device.upload(rng.standard_normal((70, 64)).astype(np.float32)), device.weight(tensor)
    y = device.upload(np.full((70, 100), np.nan, np.float32))
    large = products.Products(device.runtime)
    assert large.takes(x, weight)
    sizes = []
    for launch in large.launches(x, weight, y):
        if launch.source == products.CUBLAS:
            sizes.append(launch.args[5])
            by_numpy(device, launch)
        else:
            device.runtime.prepare([launch])()
    assert sizes == [40, 40, 20]
    # sums of 64 products of numbers near 1, in another order
    np.testing.assert_allclose(device.download(y), device.download(x) @ tensor.dequantize().T, rtol=1e-5, atol=1e-5)


def by_numpy(device, launch) -> None:
    """cublasSgemm(T, N, rows, n_tokens, n, 1, dense, n, x, n, 0, y + first_row, m), in numpy's order of rows."""
    x_memory, dense_memory, y_memory, n_tokens, n, rows, first_row, m = launch.args
    x, dense, y = (np.empty(shape, np.float32) for shape in ((n_tokens, n), (rows, n), (n_tokens, m)))
    for memory, array in ((x_memory, x), (dense_memory, dense), (y_memory, y)):
        device.runtime.read(memory, array)
    y[:, first_row : first_row + rows] = x @ dense.T
    device.runtime.write(y_memory, y)
