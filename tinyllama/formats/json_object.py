"""JSON objects from files of strangers: parsed with limits, and looked into with an error that names file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ops.errors import FormatError

from .other_files import is_there

MAX_FILE_BYTES = 2**26  # a tokenizer.json of 256,000 tokens has 35 MB
MAX_SIZE = 2**31 - 1  # of what a config counts
_NOT_GIVEN: Any = object()


def parse_object(text: bytes | memoryview, source: str) -> dict[str, Any]:
    """The object that UTF-8 JSON holds; `source` names it in errors.

    FormatError: it is no JSON, no object at the top, nested too deeply, or a key occurs twice in one object.
    """
    try:
        value = json.loads(str(text, "utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise FormatError(f"{source}: the JSON is nested too deeply; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{source}: this is not sound JSON: {error.msg} at character {error.pos}; download it again"
        ) from None
    except ValueError:  # bytes that are no UTF-8, a number of thousands of digits
        raise FormatError(f"{source}: this is not sound JSON; the file is damaged: download it again") from None
    if not isinstance(value, dict):
        raise FormatError(f"{source}: the JSON holds no object; the file is damaged")
    return value


def read_object(path: Path) -> JsonObject:
    """The object that a JSON file holds. FormatError as in parse_object, or if the file is missing, huge, or no file."""
    if not is_there(path):
        raise FormatError(f"{path.parent}: the folder lacks {path.name}; download it too")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise FormatError(f"{path}: {size} bytes are too many for this file, {MAX_FILE_BYTES} are the limit")
    return JsonObject(str(path), parse_object(path.read_bytes(), str(path)))


def read_optional(path: Path) -> JsonObject:
    """As read_object, but an empty object where there is no such file."""
    return read_object(path) if is_there(path) else JsonObject(str(path), {})


class JsonObject:
    """Typed look-ups. A key's value `null` is the same as no key; of several names for a thing the first given counts."""

    def __init__(self, source: str, values: dict[str, Any]) -> None:
        self.source = source
        self.values = values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.source}: {sentence}")

    def size(self, *keys: str, default: int = _NOT_GIVEN) -> int:
        """A whole number, at least 1."""
        key, value = self._find(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise self._unexpected(key, value, f"a whole number from 1 to {MAX_SIZE}")
        return value

    def number(self, *keys: str, default: float = _NOT_GIVEN) -> float:
        """A finite number above 0."""
        key, value = self._find(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self._unexpected(key, value, "a finite number above 0")
        return float(min(value, 2**1000))  # an int of JSON may exceed every float

    def flag(self, *keys: str, default: bool = _NOT_GIVEN) -> bool:
        key, value = self._find(keys, default)
        if not isinstance(value, bool):
            raise self._unexpected(key, value, "true or false")
        return value

    def text(self, *keys: str, default: str = _NOT_GIVEN) -> str:
        key, value = self._find(keys, default)
        if not isinstance(value, str):
            raise self._unexpected(key, value, "a text")
        return value

    def object(self, *keys: str) -> JsonObject:
        """An empty one if none is given."""
        key, value = self._find(keys, {})
        if not isinstance(value, dict):
            raise self._unexpected(key, value, "an object")
        return JsonObject(f"{self.source}: {key}", value)

    def objects(self, *keys: str) -> list[JsonObject]:
        """A list of objects; an empty one if none is given."""
        key, value = self._find(keys, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._unexpected(key, value, "a list of objects")
        return [JsonObject(f"{self.source}: {key}[{i}]", item) for i, item in enumerate(value)]

    def _find(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for key in keys:
            if key in self:
                return key, self.values[key]
        if default is _NOT_GIVEN:
            raise self.error(f"{' or '.join(keys)} is missing; the file is damaged or of an unknown kind")
        return keys[0], default

    def _unexpected(self, key: str, value: Any, expected: str) -> FormatError:
        shown = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
        return self.error(f"{key} is {shown[:80]}, expected {expected}")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double[:80]!r} occurs twice")
    return values
