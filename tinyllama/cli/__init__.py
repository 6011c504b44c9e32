"""The command line: a file a command, which parses, calls the public API and prints; no logic lives here.

What a program of your own needs to take the same flags and to behave the same at a terminal is public, see `__all__`;
`examples/generate.py` shows it in use.
"""

from .arguments import (
    add_model_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    model_options,
    sampling_from,
)
from .progress import file_bar, prompt_bar, warm_up
from .terminal import INTERRUPTED, Parser, guarded
from .text import prompt_from

__all__ = [
    "INTERRUPTED",
    "Parser",
    "add_model_arguments",
    "add_prompt_arguments",
    "add_sampling_arguments",
    "file_bar",
    "guarded",
    "model_options",
    "prompt_bar",
    "prompt_from",
    "sampling_from",
    "warm_up",
]
