"""The block formats of weights, one file a family. `FORMATS["Q4_0"]` is a format by its name."""

from . import floats, ggjt, k_quants, legacy
from .block import FORMATS, BlockFormat
from .quantize import QUANTIZERS, quantize

BY_GGML_TYPE = {f.ggml_type: f for f in FORMATS.values() if f.ggml_type is not None}

__all__ = ["BY_GGML_TYPE", "FORMATS", "QUANTIZERS", "BlockFormat", "floats", "ggjt", "k_quants", "legacy", "quantize"]
