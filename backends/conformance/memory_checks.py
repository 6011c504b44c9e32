"""No leak: memory after a thousand steps is what it was after some, and what is dropped is given back."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np

from ..base import Backend
from .decoder import OPS_USED, Decoder
from .sessions import Session
from .trial import Trial, law

STEPS, WARM, PLACES = 1000, 50, 64
VOCABULARY = 4096  # a row of logits takes 16 KiB: if each step leaves one behind, 1000 leave 16 MiB
RESIDENT_MARGIN = 8 << 20  # bytes, half of what leaked logits would take; a driver's or BLAS's threads touch some pages late
OBJECTS_MARGIN = 500  # one object in two steps; Python's own caches take some dozens
DROPPED_MARGIN = 200_000  # bytes, less than one of ten contexts or models; Python's own caches take some tens of thousands


def resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def settled(backend: Backend) -> tuple[int, int]:
    """Bytes of the device and of the process, when all work is done, and all that nobody holds is gone."""
    backend.synchronize()
    gc.collect()
    return backend.memory_used(), resident_bytes()


@law("run-memory", *OPS_USED, examples=1, as_it_is=True)
def memory(trial: Trial) -> None:
    """1000 steps take no more memory than 50: not of the device, as the backend counts it, nor of the process; and they leave
    no object of Python's behind."""
    decoder = Decoder(32, 4, 2, 8, 48, VOCABULARY, seed=trial.one_of("weights", range(100)))
    session, tokens = Session(trial.backend, decoder, PLACES), np.arange(1)
    for step in range(WARM + STEPS):
        if step == WARM:
            (device, process), objects = settled(trial.backend), sys.getallocatedblocks()
        session.position = step % PLACES
        session.read(tokens)
    device_after, process_after = settled(trial.backend)
    left = sys.getallocatedblocks() - objects
    assert device_after <= device, f"{STEPS} steps left {device_after - device} more bytes on the device"
    assert left <= OBJECTS_MARGIN, f"{STEPS} steps left {left} more objects"
    assert process_after - process <= RESIDENT_MARGIN, f"{STEPS} steps left {process_after - process} more bytes in memory"


@law("run-memory-dropped", *OPS_USED, examples=1, as_it_is=True)
def dropped(trial: Trial) -> None:
    """A context that nobody holds any more is gone, its caches, its plan and what belongs to it; a model that is gone takes its
    weights along, and a backend all it had."""
    seed = trial.one_of("weights", range(100))
    began = not tracemalloc.is_tracing()  # Python's count of its memory, numpy's arrays included
    if began:
        tracemalloc.start()
    try:
        for n in range(13):
            if n == 8:  # PoCL settles in the first rounds only: its threads keep some 15 MB of what they freed
                (device, process), python = settled(trial.backend), tracemalloc.get_traced_memory()[0]
            twin = type(trial.backend)(trial.backend.options)
            for backend in (trial.backend, twin):
                Session(backend, Decoder(64, 4, 2, 16, 96, 512, seed=seed), 1024).read(np.arange(3))
            del twin, backend
        device_after, process_after = settled(trial.backend)
        left = tracemalloc.get_traced_memory()[0] - python
    finally:
        if began:
            tracemalloc.stop()
    assert device_after <= device, f"ten contexts, made and dropped, left {device_after - device} bytes on the device"
    assert left <= DROPPED_MARGIN, f"ten contexts, made and dropped, left {left} bytes of Python's and numpy's memory"
    assert process_after - process <= RESIDENT_MARGIN, f"ten contexts, made and dropped, left {process_after - process} bytes"
