"""Backends that are wrong in one way each, as real ones have been: what the conformance kit is tested with.

Each is a class on top of numpy's backend; its docstring tells what is wrong. `MUTANTS` has them all.
"""

from . import attention, elementwise, kv_cache, memory, plans, products, rope, weights
from .mutant import MUTANTS

__all__ = ["MUTANTS", "attention", "elementwise", "kv_cache", "memory", "plans", "products", "rope", "weights"]
