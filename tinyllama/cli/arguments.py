"""Flags that several commands share. Names and defaults are llama.cpp's."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .text import DEFAULT_PROMPT

if TYPE_CHECKING:
    from ..model import Model
    from ..sampling import Sampling

DEFAULT_MODEL = "smollm2"
DEVICE_FEATURES = (
    "the kernels made for another kind of device than the one found: cpu (the best for this CPU) or gpu; opencl has for a CPU "
    "avx512vnni, avx2 and portable"
)


def integer(low: int, high: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if not low <= value <= high:
            upper = "" if high == math.inf else f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range: it must be at least {low}{upper}")
        return value

    return parse


def number(text: str) -> float:
    """A type for argparse: a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def memory_size(text: str) -> int:
    """A type for argparse: bytes, as 6G, 512M, 100K or a plain number."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = units.get(digits[-1:], 1)
    try:
        return int(float(digits[:-1] if unit > 1 else digits) * unit) if "-" not in digits else int("")
    except (ValueError, OverflowError):  # no number, or none that is finite
        raise argparse.ArgumentTypeError(f"'{text}' is no amount of memory: give 0 or more, such as 6G") from None


def layer_count(text: str) -> int | str:
    """A type for argparse: -ngl takes a number, `all` or `auto`."""
    if text in ("all", "auto"):
        return text
    try:
        return integer(-1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; -ngl takes a number of layers, all or auto") from None


def add_model_name(parser: argparse._ActionsContainer) -> None:
    """Which model."""
    parser.add_argument(
        "-m", "--model", default=DEFAULT_MODEL, metavar="MODEL",
        help="a name (smollm2), a path, or hf:OWNER/REPO/FILE.gguf (default: %(default)s)",
    )  # fmt: skip


def add_batch_size(parser: argparse._ActionsContainer) -> None:
    """How long a step may be."""
    told = "prompt tokens computed at once (default: 512)"
    parser.add_argument("-b", "--batch-size", type=integer(1), default=512, metavar="N", help=told)


def add_model_arguments(parser: argparse.ArgumentParser, ctx_size: int = 0) -> None:
    """Which model, how much context (its default), and where it is computed."""
    group = parser.add_argument_group("model")
    add_model_name(group)
    add = group.add_argument
    add(
        "-c",
        "--ctx-size",
        type=integer(0),
        default=ctx_size,
        metavar="N",
        help="places of the context; 0: the model's own (default: %(default)s)",
    )
    add_batch_size(group)
    add("-t", "--threads", type=integer(1, 1024), default=None, metavar="N", help="threads (default: all cores)")
    add_placement_arguments(parser)


def add_placement_arguments(parser: argparse.ArgumentParser) -> None:
    """Which backend computes, from what memory."""
    add = parser.add_argument_group("backend").add_argument
    add("--backend", default="auto", metavar="NAME",
        help="auto (default): cupy if it finds a GPU, else opencl if it finds a device, else numpy; or one of these, another "
        "installed one, module:Class")  # fmt: skip
    add("-ngl", "--n-gpu-layers", "--gpu-layers", type=layer_count, default=None, metavar="N",
        help="the last N layers on the backend's device, the output too if N is more than the model has; all; or auto, as many "
        "as its memory holds (default: all, with --backend auto: auto); no effect on numpy, which has no device")  # fmt: skip
    add("--layers", default=None, metavar="MAP",
        help="instead of -ngl, any split: numpy:0-9,opencl:10-29; opencl@1:5 names a device, numpy:output an end")  # fmt: skip
    add("--device", default=None, metavar="NAME", help="which device: a number or a part of its name (see tinyllama devices)")
    add("-mg", "--main-gpu", type=integer(0), default=None, metavar="N", help="the device by its number, as --device N")
    add("--device-memory", type=memory_size, default=None, metavar="SIZE", help="memory a device may use at most, such as 6G")
    add("--device-features", default=None, metavar="KIND", help=DEVICE_FEATURES)
    for letter, what in (("k", "keys"), ("v", "values")):
        add(f"-ct{letter}", f"--cache-type-{letter}", choices=("f16", "f32"), default=None,
            help=f"how the KV cache keeps {what} (default: f32 on numpy, f16 on a device)")  # fmt: skip
    add("--no-mmap", dest="mmap", action="store_false", help="read the file into memory instead of mapping it")
    add(
        "--weights-memory",
        type=memory_size,
        default=None,
        metavar="SIZE",
        help="memory for weights in float32, such as 6G; what does not fit is converted at every use (default: what is free)",
    )
    add("--no-fuse", dest="fuse", action="store_false", help="run primitive ops only, none fused")
    add_kernel_arguments(add)


def add_kernel_arguments(add: Callable[..., Any]) -> None:
    """How a backend's kernels take activations and weights; add: a parser's or a group's add_argument."""
    add("--precise", action="store_true", help="activations stay float32 where the backend would round them to 8 bits")
    told = "weights stay as mapped where the backend would lay them out anew"
    add("--no-repack", dest="repack", action="store_false", help=told)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How the next token is drawn."""
    group = parser.add_argument_group("sampling, in this order")
    add = group.add_argument
    add("-s", "--seed", type=integer(-1), default=-1, metavar="N", help="the same seed gives the same text; -1: random")
    add("-l", "--logit-bias", type=token_bias, action="append", default=[], metavar="ID(+|-)BIAS", help="add to a logit")
    add("--repeat-penalty", type=number, default=1.0, metavar="X", help="1: off (default)")
    add("--repeat-last-n", type=integer(-1), default=64, metavar="N", help="tokens it looks back; -1: all (default: 64)")
    add("--presence-penalty", type=number, default=0.0, metavar="X", help="0: off (default)")
    add("--frequency-penalty", type=number, default=0.0, metavar="X", help="0: off (default)")
    add("--top-k", type=integer(-(2**31)), default=40, metavar="N", help="the N likeliest; 0 or less: all (default: 40)")
    add("--typical", type=number, default=1.0, metavar="P", help="locally typical sampling; 1: off (default)")
    add(
        "--top-p",
        type=number,
        default=0.95,
        metavar="P",
        help="the likeliest that together have P; 1: off (default: 0.95)",
    )
    add("--min-p", type=number, default=0.05, metavar="P", help="at least P times the likeliest; 0: off (default: 0.05)")
    add("--temp", type=number, default=0.8, metavar="X", help="temperature; 0: always the likeliest (default: 0.8)")
    add(
        "--mirostat",
        type=int,
        choices=(0, 2),
        default=0,
        help="2: mirostat 2 in place of top-k, top-p, ... (default: 0)",
    )
    add("--mirostat-ent", type=number, default=5.0, metavar="X", help="its target, in bits (default: 5)")
    add("--mirostat-lr", type=number, default=0.1, metavar="X", help="its learning rate (default: 0.1)")


def token_bias(text: str) -> tuple[int, float]:
    """A type for argparse: 15043+1 or 15043-1, as llama.cpp writes it."""
    at = max(text.find("+"), text.find("-"))
    if at < 1 or not text[:at].isdigit():
        raise argparse.ArgumentTypeError(f"'{text}': expected a token id and a bias, such as 15043+1 or 15043-1")
    return int(text[:at]), number(text[at:].replace("+", "", 1)) if text[at:] != "-inf" else -math.inf


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What to complete, and how far."""
    group = parser.add_argument_group("prompt")
    add = group.add_argument
    source = group.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", default=None, metavar="TEXT", help=f"text to continue (default: {DEFAULT_PROMPT})")
    source.add_argument("-f", "--file", type=Path, default=None, metavar="FILE", help="a file with the text to continue")
    add(
        "-e",
        "--escape",
        action="store_true",
        default=True,
        help="read \\n, \\t, \\\\ in the prompt as escapes (default)",
    )
    add("--no-escape", dest="escape", action="store_false", help="leave backslashes in the prompt alone")
    add(
        "-n",
        "--n-predict",
        type=integer(-1),
        default=128,
        metavar="N",
        help="tokens to generate; -1: no limit (default: 128)",
    )
    add("--ignore-eos", action="store_true", help="go on after the model's end-of-text token")
    add("--verbose-prompt", action="store_true", help="print the prompt's tokens before generating")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What Model.load takes beside the model's name."""
    return {
        "backend": args.backend,
        "n_gpu_layers": args.n_gpu_layers,
        "layers": args.layers,
        "device": args.device,
        "main_gpu": args.main_gpu,
        "device_memory": args.device_memory,
        "device_features": args.device_features,
        "type_k": args.cache_type_k,
        "type_v": args.cache_type_v,
        "n_ctx": args.ctx_size,
        "n_batch": args.batch_size,
        "mmap": args.mmap,
        "n_threads": args.threads,
        "weights_memory": args.weights_memory,
        "fuse": args.fuse,
        "precise": args.precise,
        "repack": args.repack,
    }


def load_model(args: argparse.Namespace) -> Model:
    """The model of these flags."""
    from ..model import Model

    sys.path.append("")  # the working directory: where --backend module:Class is looked for last
    return Model.load(args.model, **model_options(args))


def sampling_from(args: argparse.Namespace) -> Sampling:
    from ..sampling import Sampling

    return Sampling(
        temp=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        typical_p=args.typical,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        mirostat=args.mirostat,
        mirostat_tau=args.mirostat_ent,
        mirostat_eta=args.mirostat_lr,
        logit_bias=dict(args.logit_bias),
        seed=args.seed,
    )


def note(text: str = "") -> None:
    """A line for the person at the terminal: stderr, since stdout holds the text and nothing else."""
    print(text, file=sys.stderr, flush=True)
