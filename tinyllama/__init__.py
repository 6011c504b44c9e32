"""tinyllama: a LLaMA engine to read. `Model.load("smollm2").generate("Once upon a time")`"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Context",
    "Generation",
    "Model",
    "Sampling",
    "TinyLlamaError",
    "load_summary",
    "prompt_summary",
    "timings_summary",
]

if TYPE_CHECKING:
    from ops.errors import TinyLlamaError

    from .context import Context
    from .generation import Generation
    from .model import Model
    from .sampling import Sampling
    from .summary import load_summary, prompt_summary, timings_summary

_HOME = {
    "Context": "tinyllama.context",
    "Generation": "tinyllama.generation",
    "Model": "tinyllama.model",
    "Sampling": "tinyllama.sampling",
    "TinyLlamaError": "ops.errors",
    "load_summary": "tinyllama.summary",
    "prompt_summary": "tinyllama.summary",
    "timings_summary": "tinyllama.summary",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import tinyllama` and `--help` cost nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'tinyllama' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def _check_siblings() -> None:
    """ops and backends are common names: another installed package called so may hide ours, or have overwritten it."""
    for package in ("ops", "backends"):
        spec = importlib.util.find_spec(package)
        origin = spec.origin if spec else None
        ours = Path(__file__).parent.parent / package / "__init__.py"
        if not origin or not Path(origin).samefile(ours) or "tinyllama" not in ours.read_text("utf-8")[:80]:
            raise ImportError(
                f"tinyllama needs its own package '{package}', but another one of that name is installed at "
                f"{origin}: uninstall it, or install tinyllama in an environment of its own"
            )


_check_siblings()
