"""`tinyllama COMMAND`: finds the command and runs it."""

from __future__ import annotations

from collections.abc import Sequence

import tinyllama

from . import bench, chat, conformance, convert, devices, graph, inspect, perplexity, plan, pull, quantize, run, tokenize
from .terminal import Parser, guarded

COMMANDS = {
    "run": run, "chat": chat, "plan": plan, "pull": pull, "inspect": inspect, "convert": convert, "quantize": quantize,
    "tokenize": tokenize, "graph": graph, "bench": bench, "perplexity": perplexity, "devices": devices,
    "conformance": conformance,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. 0 all went well, 1 an error told in one sentence, 2 wrong flags, 130 Ctrl-C, 141 broken pipe."""
    parser = Parser(prog="tinyllama", description="A LLaMA engine to read, and to prove array backends with.")
    parser.add_argument("--version", action="version", version=f"tinyllama {tinyllama.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return guarded(lambda: COMMANDS[args.command].run(args), f"tinyllama {args.command}")
