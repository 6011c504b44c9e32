"""What must be known about the tokenizers library (Rust) to hand a file's vocabulary to it safely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ops.errors import FormatError


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Turns what the library raises into a FormatError.

    A panic of Rust code arrives as pyo3's PanicException, which is no Exception and cannot be imported by its name.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise FormatError(f"the tokenizers library cannot {doing} with this file's vocabulary: {error}") from error


def without_surrogates(ids: Mapping[str, int]) -> dict[str, int]:
    """A copy without the tokens that are no Unicode text: the library refuses them, and no text can contain them."""
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return {token: id for token, id in ids.items() if not any("\ud800" <= c <= "\udfff" for c in token)}
    return dict(ids)
