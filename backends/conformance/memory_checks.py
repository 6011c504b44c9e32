"""No leak: memory after a thousand steps is what it was after some, and what is dropped is given back."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np

from ..base import Backend
from .decoder import OPS_USED, Decoder
from .runs import Session
from .trial import Trial, law

STEPS, WARM, PLACES = 1000, 100, 64
VOCABULARY = 4096  # a row of logits takes 16 KiB: if each step leaves one behind, 1000 leave 16 MiB
PYTHON_MARGIN = 200_000  # bytes: 200 a step, less than the smallest of arrays; caches of Python's own take some tens of kB
RESIDENT_MARGIN = 8 << 20  # half of what leaked logits would take; a driver's or BLAS's threads touch some pages late


def resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def settled(backend: Backend) -> tuple[int, int, int]:
    """Bytes of the device, of Python and numpy, of the process, when all that nobody holds is gone."""
    backend.synchronize()
    gc.collect()
    return backend.memory_used(), tracemalloc.get_traced_memory()[0], resident_bytes()


def traced() -> bool:
    """Python's own count of its memory, numpy's arrays included; False if someone else has it running already."""
    if tracemalloc.is_tracing():
        return False
    tracemalloc.start()
    return True


@law("run-memory", *OPS_USED, examples=1)
def memory(trial: Trial) -> None:
    """1000 steps take no more memory than 100: not of the device, as the backend counts it, not of Python, nor of the process."""
    decoder = Decoder(64, 4, 2, 16, 96, VOCABULARY, seed=trial.one_of("weights", range(100)))
    session, tokens = Session(trial.backend, decoder, PLACES), np.arange(1)
    began = traced()
    try:
        for step in range(WARM + STEPS):
            if step == WARM:
                before = settled(trial.backend)
            session.position = step % PLACES
            session.read(tokens)
        device, python, process = (b - a for a, b in zip(before, settled(trial.backend), strict=True))
    finally:
        if began:
            tracemalloc.stop()
    assert device <= 0, f"{STEPS} steps left {device} more bytes on the device"
    assert python <= PYTHON_MARGIN, f"{STEPS} steps left {python} more bytes of Python's and numpy's memory"
    assert process <= RESIDENT_MARGIN, f"{STEPS} steps left {process} more bytes in the process's memory"


@law("run-memory-dropped", *OPS_USED, examples=1)
def dropped(trial: Trial) -> None:
    """A context that nobody holds any more is gone, its caches, its plan and what belongs to it; a model that is gone takes its
    weights along, and a backend all it had."""
    seed = trial.one_of("weights", range(100))
    began = traced()
    try:
        for round_ in range(12):
            if round_ == 2:
                before = settled(trial.backend)
            twin = type(trial.backend)(trial.backend.options)
            for backend in (trial.backend, twin):
                decoder = Decoder(64, 4, 2, 16, 96, VOCABULARY, seed=seed)  # the table takes 1 MiB, the caches as much
                Session(backend, decoder, 4096).read(np.arange(3))
            del twin, backend
        device, python, process = (b - a for a, b in zip(before, settled(trial.backend), strict=True))
    finally:
        if began:
            tracemalloc.stop()
    assert device <= 0, f"ten contexts, made and dropped, left {device} bytes on the device"
    assert python <= 1 << 20, f"ten contexts, made and dropped, left {python} bytes of Python's and numpy's memory"
    assert process <= RESIDENT_MARGIN, f"ten contexts, made and dropped, left {process} bytes in the process's memory"
