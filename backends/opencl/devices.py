"""Which OpenCL devices there are, and which of them is meant."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ops.errors import BackendError

from ..base import Device, Options
from ..device.runtime import Limits

INSTALL = 'pip install "tinyllama[opencl]" brings pyopencl, and on Linux PoCL, which runs on any CPU'


def load_pyopencl() -> Any:
    """The module; BackendError says what to install if it is missing or does not load."""
    try:
        import pyopencl
    except ImportError as error:
        raise BackendError(f"backend 'opencl' needs pyopencl, which cannot be imported ({error}): {INSTALL}") from error
    return pyopencl


def found() -> list[Any]:
    """Every pyopencl.Device that could run kernels, GPUs first: their order is what `--device N` counts."""
    cl = load_pyopencl()
    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices()]
    except cl.Error as error:  # no driver at all is an error of its own
        raise BackendError(f"no OpenCL platform was found ({' '.join(str(error).split())}): {INSTALL}") from error
    usable = [d for d in devices if d.available and d.compiler_available]
    if not usable:
        raise BackendError(f"no OpenCL device was found: {INSTALL}")
    return sorted(usable, key=lambda d: not d.type & cl.device_type.GPU)


def told(device: Any) -> Device:
    """What a user sees of a device."""
    cl = load_pyopencl()
    is_gpu, is_cpu = device.type & cl.device_type.GPU, device.type & cl.device_type.CPU
    return Device(
        name=" ".join(device.name.split()),
        kind="GPU" if is_gpu else "CPU" if is_cpu else "accelerator",
        memory=device.global_mem_size,
        driver=f"{device.platform.name.strip()}, {device.driver_version.strip()}",
    )


def chosen(wanted: str | None) -> Any:
    """The device of this number or with this in its name; else what PYOPENCL_CTX says; else the first."""
    devices = found()
    if wanted is None:
        if os.environ.get("PYOPENCL_CTX"):
            return _of_environment()
        return devices[0]
    names = [told(d).name for d in devices]
    if wanted.isdigit():
        if int(wanted) < len(devices):
            return devices[int(wanted)]
    elif wanted and (matching := [d for d, name in zip(devices, names, strict=True) if wanted.lower() in name.lower()]):
        return matching[0]
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    raise BackendError(f"no OpenCL device '{wanted}': there are {listed}; `tinyllama devices` shows them")


def _of_environment() -> Any:
    cl = load_pyopencl()
    try:
        return cl.create_some_context(interactive=False).devices[0]
    except (cl.Error, RuntimeError, ValueError, IndexError) as error:
        wanted = os.environ["PYOPENCL_CTX"]
        raise BackendError(f"PYOPENCL_CTX={wanted!r} names no device that is here: {' '.join(str(error).split())}") from error


def with_threads(device: Any, n_threads: int | None) -> Any:
    """The device, or of a CPU as many processors as the user wants."""
    cl = load_pyopencl()
    if not n_threads or n_threads >= device.max_compute_units or not device.type & cl.device_type.CPU:
        return device
    try:
        return device.create_sub_devices([cl.device_partition_property.BY_COUNTS, n_threads, 0])[0]
    except cl.Error:  # a device that cannot be divided is used whole
        return device


def limits(device: Any, options: Options) -> Limits:
    """Asked of the driver, within what the user allows."""
    cl = load_pyopencl()
    is_cpu = bool(device.type & cl.device_type.CPU)
    kind = options.device_features or ("cpu" if is_cpu else "gpu")
    if kind not in ("cpu", "gpu"):
        raise BackendError(f"--device-features {kind}: opencl has kernels for 'cpu' and for 'gpu'")
    asked = Limits(
        name=told(device).name,
        kind="cpu" if kind == "cpu" else "gpu",
        group_size=min(device.max_work_group_size, device.max_work_item_sizes[0]),  # groups extend along the first axis only
        local_memory=device.local_mem_size,
        allocation=device.max_mem_alloc_size,
        memory=device.global_mem_size,
    )
    return asked if options.device_memory is None else replace(asked, memory=min(options.device_memory, asked.memory))
