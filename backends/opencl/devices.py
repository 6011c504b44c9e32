"""Which OpenCL devices there are, and which of them is meant."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ops.errors import BackendError

from ..base import Device, Options
from ..device.runtime import Integers, Limits, untuned

INSTALL = 'pip install "tinyllama[opencl]" brings pyopencl, and on Linux PoCL, which runs on any CPU'


def load_pyopencl() -> Any:
    """The module; BackendError says what to install if it is missing or does not load."""
    try:
        _without_a_cache_that_cannot_be()
        import pyopencl
    except ImportError as error:
        raise BackendError(f"backend 'opencl' needs pyopencl, which cannot be imported ({error}): {INSTALL}") from error
    return pyopencl


def _without_a_cache_that_cannot_be() -> None:
    """pyopencl keeps what it has compiled in the user's cache folder, and on Linux fails where there can be none."""
    if sys.platform != "linux":
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder.mkdir(parents=True, exist_ok=True)
        is_usable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows of a home folder
        is_usable = False
    if not is_usable:
        os.environ.setdefault("PYOPENCL_NO_CACHE", "1")


def keep_threads_apart(n_threads: int | None) -> None:
    """Have PoCL put each of its threads on a processor of its own, if there will be one for each processor.

    Linux may start two of them on the same processor, and was seen to leave them there for milliseconds while another one was
    free: of 1000 decoded tokens 100 took two to four times as long. PoCL looks at this when it is first asked for devices.
    """
    if not hasattr(os, "sched_getaffinity"):
        return
    n_processors = os.cpu_count() or 1
    if os.sched_getaffinity(0) == set(range(n_processors)) and (n_threads or n_processors) >= n_processors:
        os.environ.setdefault("POCL_AFFINITY", "1")


def found() -> list[Any]:
    """Every pyopencl.Device that could run kernels, GPUs first: their order is what `--device N` counts."""
    cl = load_pyopencl()
    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices()]
    except cl.Error as error:  # no driver at all is an error of its own
        raise BackendError(f"no OpenCL platform was found ({' '.join(str(error).split())}): {INSTALL}") from error
    usable = [d for d in devices if d.available and d.compiler_available]
    if not usable:
        raise BackendError(
            f"no OpenCL device was found: {INSTALL}; if it is there, its own cache must be writable (HOME, or POCL_CACHE_DIR)"
        )
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


NEEDS: dict[Integers, frozenset[str]] = {  # of the CPU, as /proc/cpuinfo names it; the fastest first
    "avx512vnni": frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512_vnni"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "portable": frozenset(),
}


def kernels_for(features: str) -> tuple[Literal["cpu", "gpu"], Integers]:
    """What `--device-features` means: kernels for a CPU, by the best instructions that it has or by those named, or for a GPU.

    BackendError: no such kernels, or instructions that this CPU lacks: it would stop the program at the first of them.
    """
    if features == "gpu":
        return "gpu", ""
    has = cpu_flags()
    if features == "cpu":
        return "cpu", next(integers for integers, flags in NEEDS.items() if flags <= has)
    integers = next((name for name in NEEDS if name == features), None)
    if integers is None:
        known = ", ".join(NEEDS)
        raise BackendError(f"--device-features {features}: opencl has kernels for {known}, cpu (the best of these), gpu")
    if missing := NEEDS[integers] - has:
        raise BackendError(f"--device-features {features}: this CPU lacks {', '.join(sorted(missing))}; cpu takes what it has")
    return "cpu", integers


@cache
def cpu_flags() -> frozenset[str]:
    """The instructions that this machine's processor has, as Linux tells them; none where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return frozenset(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    except (OSError, StopIteration):
        return frozenset()


def limits(device: Any, options: Options) -> Limits:
    """Asked of the driver, within what the user allows."""
    cl = load_pyopencl()
    is_cpu = bool(device.type & cl.device_type.CPU)
    features = options.device_features or ("cpu" if is_cpu else "gpu")
    kind, integers = kernels_for(features)
    if options.device_features is None and "Portable Computing" not in device.platform.name:
        integers = ""  # their compilers may know none of the instructions, and products of floats run everywhere
    integers = "" if options.precise or not options.repack else integers
    asked = Limits(
        name=told(device).name,
        kind=kind,
        group_size=min(device.max_work_group_size, device.max_work_item_sizes[0]),  # groups extend along the first axis only
        local_memory=device.local_mem_size,
        allocation=device.max_mem_alloc_size,
        memory=device.global_mem_size,
        cores=device.max_compute_units,
        integers=integers,
        tuning=untuned(integers),
        driver=told(device).driver,
    )
    return asked if options.device_memory is None else replace(asked, memory=min(options.device_memory, asked.memory))
