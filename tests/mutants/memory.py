"""Wrong about where arrays live: uploads, downloads, caches, what is shared and what is kept."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import Backend, kernel
from backends.numpy import Numpy

from .mutant import wrong


@wrong("contract-upload", "silu")
class UploadIgnoresStrides(Numpy):
    """An array is copied as it lies in memory, not in the order of its rows."""

    def upload(self, array):
        return np.asarray(array).ravel(order="K").reshape(array.shape)


@wrong("contract-upload", "add")
class UploadIgnoresOffset(Numpy):
    """A part of a larger array is taken for the whole from its beginning on."""

    def upload(self, array):
        base = array.base
        if isinstance(base, np.ndarray) and base.dtype == array.dtype and base.size > array.size:
            return base.reshape(-1)[: array.size].reshape(array.shape).copy()
        return array


@wrong("contract-upload", "embedding")
class PositionsInHalf(Numpy):
    """Everything is uploaded in float32, integers too."""

    def upload(self, array):
        return array.astype(np.float32).astype(array.dtype)


class Later:
    """What is computed when somebody looks at it."""

    def __init__(self, compute):
        self._compute, self._made = compute, None

    @property
    def array(self):
        if self._made is None:
            self._made = self._compute()
        return self._made

    shape = property(lambda self: self.array.shape)
    nbytes = property(lambda self: self.array.nbytes)


@wrong("contract-upload", "run-")
class UploadKeepsTheCallersArray(Backend):
    """Work is only queued, and what was uploaded is read when it is done: by then the caller has changed it."""

    name = "later"

    def allocate(self, shape, dtype):
        array = np.zeros(shape, dtype)
        return Later(lambda: array)

    def upload(self, array):
        return Later(lambda: array)

    def download(self, buffer):
        return buffer.array

    def overwrite(self, buffer, array):
        if array is not buffer.array:
            buffer.array[: len(array)] = array

    @kernel(ops.add)
    def add(self, a, b):
        return Later(lambda: a.array + b.array)


@wrong("graph-layer")
class DownloadsShareOneArray(Numpy):
    """There is one staging area for downloads: the next one overwrites what the last one gave."""

    def download(self, buffer):
        staging = self.__dict__.setdefault("_staging", {}).setdefault((buffer.shape, buffer.dtype.str), np.empty_like(buffer))
        staging[...] = buffer
        return staging


@wrong("contract-allocate")
class AllocatesWithoutZeros(Numpy):
    """A new cache holds what lay there before."""

    def allocate(self, shape, dtype):
        return np.full(shape, 7, dtype)


@wrong("contract-allocate")
class AllocatesHalf(Numpy):
    """Caches are float16, whatever was asked for."""

    def allocate(self, shape, dtype):
        return np.zeros(shape, np.float16)


@wrong("contract-overwrite", "graph-")
class OverwritesTooMuch(Numpy):
    """The rows after those that are written are cleared."""

    def overwrite(self, buffer, array):
        super().overwrite(buffer, array)
        buffer[len(array) :] = 0


@wrong("contract-overwrite", "graph-")
class OverwritesTheEnd(Numpy):
    """The last rows are written instead of the first."""

    def overwrite(self, buffer, array):
        buffer[len(buffer) - len(array) :] = array


@wrong("contract-enlarge", "graph-")
class EnlargeLosesTheLastRow(Numpy):
    """One row too few is copied to the larger cache."""

    def enlarge(self, buffer, rows):
        larger = self.allocate((rows, *buffer.shape[1:]), buffer.dtype)
        self.overwrite(larger, buffer[:-1])
        return larger


@wrong("contract-enlarge", "graph-")
class EnlargeRepeatsRows(Numpy):
    """The new places of a larger cache hold old rows."""

    def enlarge(self, buffer, rows):
        return np.resize(buffer, (rows, *buffer.shape[1:]))


@wrong("contract-resident", "matmul")
class WeightsByName(Numpy):
    """Weights are kept by their name, so that the second model gets the first one's."""

    def weight(self, tensor):
        return self.__dict__.setdefault("_by_name", {}).setdefault((tensor.name, tensor.shape), tensor)


@wrong("matmul", dtype="Q5_1")
class RareFormatIsTakenForAnother(Numpy):
    """Q5_1 is read as Q4_1, whose blocks are shorter."""

    def weight(self, tensor):
        if tensor.format.name != "Q5_1":
            return tensor
        blocks = tensor.data.reshape(-1, 24)[:, [0, 1, 2, 3, *range(8, 24)]]
        return type(tensor)(tensor.name, tensor.shape, ops.FORMATS["Q4_1"], blocks.reshape(len(tensor.data), -1).copy())


@wrong("contract-resident", "matmul")
class WritesToTheFile(Numpy):
    """The bytes of a weight, which are the mapped file, are repacked in place."""

    def weight(self, tensor):
        if tensor.data.flags.writeable:
            tensor.data[:, :1] ^= 1
        return tensor


@wrong("contract-results", "rmsnorm")
class OneBufferForResults(Numpy):
    """A kernel's result goes to the same buffer each time."""

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x, weight, *, eps):
        kept = self.__dict__.setdefault("_results", {}).setdefault(x.shape, np.empty(x.shape, np.float32))
        kept[...] = super().rmsnorm(x, weight, eps=eps)
        return kept


@wrong("law-sum", "add")
class NothingToAdd(Numpy):
    """Where there is nothing to add, the operand itself comes back."""

    @kernel(ops.add)
    def add(self, a, b):
        return a + b if b.any() else a
