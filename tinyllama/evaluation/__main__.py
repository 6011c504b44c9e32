"""`python -m tinyllama.evaluation`: the command of lm-evaluation-harness, with the model `tinyllama` registered."""

from __future__ import annotations

import sys

from ops.errors import TinyLlamaError

from ..cli import INTERRUPTED
from ..printable import printable


def main() -> int:
    try:
        from lm_eval.__main__ import cli_evaluate

        from . import harness  # noqa: F401  (registers the model)
    except ImportError as error:
        print(f'{error}: pip install "tinyllama[eval]" brings the lm-evaluation-harness', file=sys.stderr)
        return 1
    try:
        cli_evaluate()
    except TinyLlamaError as error:
        print(f"tinyllama: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
