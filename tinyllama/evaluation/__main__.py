"""`python -m tinyllama.evaluation`: the command of lm-evaluation-harness, with the model `tinyllama` registered."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from lm_eval.__main__ import cli_evaluate

        from . import harness  # noqa: F401  (registers the model)
    except ImportError as error:
        print(f'{error}: pip install "tinyllama[eval]" brings the lm-evaluation-harness', file=sys.stderr)
        return 1
    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
