"""The command `tinyllama`, and `python -m tinyllama`."""

import sys


def main() -> int:
    """Ctrl-C while the command's modules are read ends it as quietly as later."""
    try:
        from .cli.main import main as command

        return command()
    except KeyboardInterrupt:
        return 130  # cli.INTERRUPTED, which may not have been read yet


if __name__ == "__main__":
    sys.exit(main())
