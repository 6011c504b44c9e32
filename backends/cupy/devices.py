"""Which NVIDIA GPUs there are, and which of them is meant."""

from __future__ import annotations

from typing import Any

from ops.errors import BackendError

from ..base import Device, Options
from ..device.runtime import Limits

INSTALL = 'pip install "tinyllama[cupy13]", or "tinyllama[cupy12]" if the NVIDIA driver is older than CUDA 13'
RESERVED = 256 << 20  # bytes left for what the driver and cuBLAS take besides our buffers: an estimate, not measured
TOO_OLD, NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice


def load_cupy() -> Any:
    """The module, with a GPU behind it; BackendError says what is missing: CuPy, a driver, a newer driver, or a GPU."""
    try:
        import cupy
    except ImportError as error:
        told = " ".join(str(error).split())[:200]  # CuPy tells on a page what may be wrong
        raise BackendError(f"backend 'cupy' needs CuPy, which cannot be imported ({told}): {INSTALL}") from error
    runtime = cupy.cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise BackendError(f"backend 'cupy' cannot be used here: {_missing(runtime, error)}") from error
    return cupy


def _missing(runtime: Any, error: Any) -> str:
    has, needs = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if has == 0:
        return "there is no NVIDIA driver: install one from https://www.nvidia.com/drivers"
    if error.status == TOO_OLD:
        return f"the NVIDIA driver is for CUDA {_version(has)}, CuPy for {_version(needs)}: update the driver, or {INSTALL}"
    if error.status == NO_DEVICE:
        return "the NVIDIA driver finds no GPU: `nvidia-smi` should list one, and CUDA_VISIBLE_DEVICES must not hide it"
    return " ".join(str(error).split())


def _version(number: int) -> str:
    """12040 is 12.4"""
    return f"{number // 1000}.{number % 1000 // 10}"


def found() -> list[Device]:
    """The GPUs in the driver's order, which is what `--device N` counts."""
    runtime = load_cupy().cuda.runtime
    properties = [runtime.getDeviceProperties(i) for i in range(runtime.getDeviceCount())]
    driver = f"CUDA {_version(runtime.driverGetVersion())}"
    return [Device(p["name"].decode(), "GPU", p["totalGlobalMem"], driver) for p in properties]


def chosen(wanted: str | None) -> int:
    """The number of the device of this number or with this in its name; else of the first."""
    names = [device.name for device in found()]
    if wanted is None:
        return 0
    if wanted.isdigit():
        if int(wanted) < len(names):
            return int(wanted)
    elif matching := [i for i, name in enumerate(names) if wanted.lower() in name.lower()]:
        return matching[0]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    raise BackendError(f"no CUDA device '{wanted}': there are {listed}; `tinyllama devices` shows them")


def limits(number: int, options: Options) -> Limits:
    """Asked of the driver, within what the user allows. Memory is what no other program holds now."""
    if options.device_features not in (None, "gpu"):
        raise BackendError(f"--device-features {options.device_features}: cupy has kernels for 'gpu' only")
    cupy = load_cupy()
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    with cupy.cuda.Device(number):
        free, total = cupy.cuda.runtime.memGetInfo()
    usable = max(0, free - RESERVED)
    return Limits(
        name=properties["name"].decode(),
        kind="gpu",
        group_size=properties["maxThreadsPerBlock"],
        local_memory=properties["sharedMemPerBlock"],
        allocation=total,
        memory=usable if options.device_memory is None else min(options.device_memory, usable),
    )
