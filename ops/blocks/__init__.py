"""The block formats of weights, one file a family. `FORMATS["Q4_0"]` is a format by its name."""

from . import floats, k_quants, legacy
from .block import FORMATS, BlockFormat

BY_GGML_TYPE = {f.ggml_type: f for f in FORMATS.values()}

__all__ = ["BY_GGML_TYPE", "FORMATS", "BlockFormat", "floats", "k_quants", "legacy"]
