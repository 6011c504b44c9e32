"""Every kernel that the launch table can name, compiled for NVIDIA's GPUs. Their compiler, NVRTC, needs no GPU to do it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest

import ops
from backends.device.array import DeviceArray, DeviceWeight, Part
from backends.device.launch import ROOMS, TABLE, Launch
from backends.device.runtime import Limits, Memory
from backends.device.sources import KERNELS, source
from ops.op import OPS, Op

try:
    from cuda.bindings import nvrtc

    nvrtc.nvrtcVersion()  # loads the library
except Exception as error:  # the package, or what it loads, is missing
    pytest.skip(f"needs cuda-bindings and nvidia-cuda-nvrtc ({error})", allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]  # Turing, Ampere, Hopper: from 2018 to what NVRTC 13 still compiles for
LIMITS = Limits("a GPU", "gpu", group_size=1024, local_memory=48 << 10, allocation=1 << 40, memory=1 << 40)
ATTRS = {
    "rmsnorm": {"eps": 1e-5},
    "layernorm": {"eps": 1e-5},
    "causal_mask": {"scale": 0.3},
    "attention": {"scale": 0.3},
    "split_heads": {"h": 4},
    "top_k": {"k": 2},
    "norm_matmul": {"eps": 1e-5},
    "norm_qkv": {"eps": 1e-5},
    "norm_swiglu": {"eps": 1e-5},
}
SIZES = {"n": 512, "m": 70_000, "V": 70_000, "h": 4, "k": 2, "r": 16, "U": 1, "a": 512, "b": 128, "c": 128, "S": 700, "C": 1024}
FOR_CPUS = {"attention_many.c", "attention_one.c", "matmul_panel.c", "product_int8.c", "step.c"}
N_TOKENS = [1, 4, 512]
HEADS = [64, 80, 256]
CACHES = ["float16", "float32"]


class Nowhere:
    """A runtime without memory: launches are only looked at."""

    def let_go(self, memory: Memory) -> None:
        pass


def operand(op: Op, name: str, dims: tuple[str, ...], kind: str, sizes: dict[str, int], cache: str, fmt: str):
    shape = tuple(eval(dim, {}, sizes) for dim in dims)
    memory = Memory(Nowhere(), None, 0)
    if kind == "weight":
        return DeviceWeight(ops.FORMATS[fmt], shape, (Part(0, shape[0], memory),))
    is_cache = name in ("cache", "keys", "values", "seen", "k_cache", "v_cache")
    return DeviceArray(memory, shape, np.dtype("int32" if kind == "int" else cache if is_cache else "float32"))


def launches_of(op: Op) -> Iterator[Launch]:
    """Of steps of one token and of many, with heads of several sizes, caches of both types, weights in each format."""
    takes_weight = any(o.dtype == "weight" for o in op.inputs)
    takes_heads = any("d" in o.dims for o in op.inputs)
    for n_tokens, d, cache_type, fmt in product(
        N_TOKENS, HEADS if takes_heads else [64], CACHES if takes_heads else ["float32"], ops.FORMATS if takes_weight else [""]
    ):
        sizes = {**SIZES, "T": n_tokens, "d": d, "e": d}
        arrays = [operand(op, o.name, o.dims, o.dtype, sizes, cache_type, fmt) for o in (*op.inputs, *op.outputs)]
        attrs = ATTRS.get(op.name, {})
        n_rooms = len(ROOMS[op.name](LIMITS, *(x.shape for x in arrays), **attrs)) if op.name in ROOMS else 0
        rooms = {"rooms": [Memory(Nowhere(), None, 0)] * n_rooms} if op.name in ROOMS else {}
        yield from TABLE[op.name](LIMITS, *arrays, **attrs, **rooms)


@cache
def programs() -> dict[tuple, dict[str, Launch]]:
    """Program -> its kernels: all that can be asked for."""
    found: dict[tuple, dict[str, Launch]] = {}
    for name in TABLE:
        for launch in launches_of(OPS[name]):
            found.setdefault(launch.program, {})[launch.kernel] = launch
    return found


def compiled(launch: Launch, architecture: str) -> str:
    """The program in PTX, after all of it has become machine code. Fails with what the compiler says, warnings too."""
    text = source("cuda", launch.source, launch.defines)
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), b"", 0, [], [])
    options = [f"--gpu-architecture={architecture}".encode(), b"--Ofast-compile=max"]  # not to wait for fast code
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    told = output(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{launch.program}\n{told}"
    assert not told, f"{launch.program}\n{told}"
    ptx = output(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx


def output(program, size_of, fill) -> str:
    _, size = size_of(program)
    text = bytearray(size)
    fill(program, text)
    return text.decode().strip("\0 \n")


def entries(ptx: str) -> dict[str, tuple[list[str], int]]:
    """Kernel -> the types of its parameters, and the bytes of shared memory that it declares."""
    made = {}
    for name, parameters, body in re.findall(r"\.entry (\w+)\((.*?)\)(.*?)(?=\.entry|\Z)", ptx, re.DOTALL):
        shared = re.findall(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]", body)
        made[name] = (re.findall(r"\.param \.(\w+)", parameters), sum(map(int, shared)))
    return made


def ptx_type(arg: Memory | int | float) -> str:
    return "u64" if isinstance(arg, Memory) else "u32" if isinstance(arg, int) else "f32"


def test_the_table_has_every_op_and_the_programs_every_kernel_of_a_gpu():
    """Else the tests below would pass by compiling nothing."""
    assert set(TABLE) == {name for name, op in OPS.items() if not op.views or any(o.written for o in op.inputs)}
    files = {path.name for path in KERNELS.glob("*.c") if "\nKERNEL " in path.read_text("utf-8")}
    assert {program[0] for program in programs()} == files - FOR_CPUS
    assert {fmt for program in programs() for fmt in ops.FORMATS if (f"FORMAT_{fmt}", 1) in program} == set(ops.FORMATS)


@pytest.mark.parametrize("file", sorted({program[0] for program in programs()}))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_compile_and_kernels_take_what_the_table_gives(architecture, file):
    for program, kernels in programs().items():
        if program[0] != file:
            continue
        found = entries(compiled(next(iter(kernels.values())), architecture))
        for name, launch in kernels.items():
            parameters, shared = found[name]
            assert parameters == [ptx_type(arg) for arg in launch.args], f"{program}: {name}"
            assert shared <= launch.local_bytes, f"{program}: {name}"  # which the host holds against the device's


def test_no_launch_is_larger_than_cuda_allows():
    for kernels in programs().values():
        for launch in kernels.values():
            x, *more = launch.groups
            assert 0 < x < 2**31, launch  # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
            assert all(0 < size < 2**16 for size in more), launch
            assert launch.group_size <= LIMITS.group_size, launch
            assert launch.local_bytes <= LIMITS.local_memory, launch
