"""A zip file whose entries are stored as they are, not compressed: then each is a stretch of the file, and can be mapped.

    each entry      local header "PK\\3\\4", 30 bytes, name, extra field | its bytes
    directory       each entry "PK\\1\\2", 46 bytes, name, extra field, comment: sizes, and where the local header is
    end             "PK\\5\\6", 22 bytes, comment: number of entries, size and place of the directory

Where a number is too large for its 16 or 32 bits it is all ones, and the real one stands in the extra field 1, or in a second
end record before the first ("PK\\6\\6", found by its locator "PK\\6\\7"): zip64. All numbers are little-endian.
Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3. No size is believed before it is compared with the file's.
"""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from

from ops.errors import FormatError

MAX_ENTRIES = 65535  # what a zip file without zip64 can hold; a model has some hundred tensors
END_BYTES, LOCATOR_BYTES, END64_BYTES, DIRECTORY_BYTES, LOCAL_BYTES = 22, 20, 56, 46, 30
ALL_ONES = 0xFFFFFFFF


def entries(path: Path, data: memoryview) -> dict[str, tuple[int, int]]:
    """Start and size of each entry's bytes in the file, by name.

    FormatError: the file is no zip file, damaged, or an entry is compressed or encrypted.
    """
    n_entries, at, end = _directory(path, data)
    found: dict[str, tuple[int, int]] = {}
    for i in range(n_entries):
        if at + DIRECTORY_BYTES > end or bytes(data[at : at + 4]) != b"PK\1\2":
            raise _damaged(path, f"entry {i} of its directory is not where it should be")
        flags, method = unpack_from("<HH", data, at + 8)
        packed, size, n_name, n_extra, n_comment = unpack_from("<IIHHH", data, at + 20)
        (local,) = unpack_from("<I", data, at + 42)
        name_at, extra_at = at + DIRECTORY_BYTES, at + DIRECTORY_BYTES + n_name
        at = extra_at + n_extra + n_comment
        if at > end:
            raise _damaged(path, f"entry {i} of its directory leaves the directory")
        raw = bytes(data[name_at:extra_at])
        name = raw.decode("utf-8", "replace")
        size, packed, local = _wide(path, data[extra_at : extra_at + n_extra], name, [size, packed, local])
        if method != 0 or flags & 1 or packed != size:
            raise FormatError(
                f"{path}: the entry {name!r} is compressed or encrypted, which torch.save never does; save it again"
            )
        if name in found:
            raise _damaged(path, f"it has two entries {name!r}")
        found[name] = _bytes_of(path, data, name, raw, local), size
        if sum(found[name]) > len(data):
            raise _damaged(path, f"the entry {name!r} should end at byte {sum(found[name])}, but the file has {len(data)}")
    return found


def _directory(path: Path, data: memoryview) -> tuple[int, int, int]:
    """Number of entries, and where the directory begins and ends."""
    tail = max(0, len(data) - END_BYTES - 65535)  # a comment may follow
    found = bytes(data[tail:]).rfind(b"PK\5\6")
    end_at = tail + found
    if found < 0 or end_at + END_BYTES > len(data):
        raise _damaged(path, "it has no directory at its end")
    n_entries, size, at = unpack_from("<HII", data, end_at + 10)
    locator_at = end_at - LOCATOR_BYTES
    is_large = n_entries == 0xFFFF or ALL_ONES in (size, at)
    if is_large and locator_at >= 0 and bytes(data[locator_at : locator_at + 4]) == b"PK\6\7":
        (end64_at,) = unpack_from("<Q", data, locator_at + 8)
        if end64_at + END64_BYTES > locator_at or bytes(data[end64_at : end64_at + 4]) != b"PK\6\6":
            raise _damaged(path, "its zip64 directory is not where it should be")
        n_entries, size, at = unpack_from("<QQQ", data, end64_at + 32)
    if at + size > end_at or n_entries * DIRECTORY_BYTES > size or n_entries > MAX_ENTRIES:
        raise _damaged(path, f"its directory of {n_entries} entries does not fit into the file")
    return n_entries, at, at + size


def _wide(path: Path, extra: memoryview, name: str, numbers: list[int]) -> list[int]:
    """Size, packed size and place: those that are all ones stand in the extra field 1, in this order."""
    if ALL_ONES not in numbers:
        return numbers
    at = 0
    while at + 4 <= len(extra):
        kind, n_bytes = unpack_from("<HH", extra, at)
        values = extra[at + 4 : at + 4 + n_bytes]
        at += 4 + n_bytes
        if kind == 1 and len(values) >= 8 * numbers.count(ALL_ONES):
            wide = iter(unpack_from(f"<{len(values) // 8}Q", values))
            return [next(wide) if number == ALL_ONES else number for number in numbers]
    raise _damaged(path, f"the entry {name!r} lacks its zip64 sizes")


def _bytes_of(path: Path, data: memoryview, name: str, raw: bytes, local: int) -> int:
    """Where the bytes of an entry begin: behind its local header. Its extra field is of its own length: torch pads with it."""
    if local + LOCAL_BYTES > len(data) or bytes(data[local : local + 4]) != b"PK\3\4":
        raise _damaged(path, f"the entry {name!r} is not where its directory says")
    n_name, n_extra = (int(n) for n in unpack_from("<HH", data, local + 26))
    name_at = local + LOCAL_BYTES
    if bytes(data[name_at : name_at + n_name]) != raw:
        raise _damaged(path, f"the entry {name!r} has another name in the directory than before its bytes")
    return name_at + n_name + n_extra


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(f"{path}: this zip file is cut short or damaged: {what}; download it again")
