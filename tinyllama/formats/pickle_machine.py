"""A pickle is a program for a small stack machine. This is that machine, with the instructions that tensors need, and no more.

Python's own can import any function of any module and call it: `pickle.loads` of a stranger's file runs the stranger's program
(docs/meta-and-llama2c.md). Here a name is looked up in a table that the caller gives, nothing is ever imported, and every
instruction is bounded: it may not leave its bytes, keep more than a text's worth of them, or go on forever.

Source of the instructions: Python's Lib/pickletools.py. What torch.save writes is protocol 2; 4 adds a few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from struct import calcsize, unpack_from
from typing import Any

from ops.errors import FormatError

MAX_STEPS = 2**17  # instructions; the 723 tensors of a file of LLaMA-65B take some 30,000
MAX_TEXT_BYTES = 2**20  # of all texts; the name of a tensor has some 40
MAX_NAME_BYTES = 2**8  # of a module or what is in it
MAX_LONG_BYTES = 16  # torch's magic number has 10

Call = Callable[[Any], Any]  # takes the tuple of arguments
CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}  # BININT, BININT1, BININT2, BINFLOAT
TEXTS = {ord("X"): "<I", 0x8C: "<B", 0x8D: "<Q"}  # BINUNICODE and its short and long forms: how their length is stored
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
PUTS = {ord("q"): "<B", ord("r"): "<I"}
GETS = {ord("h"): "<B", ord("j"): "<I"}
_MARK = object()


class PickleMachine:
    """Runs the pickles that lie one after the other in `data`, from byte `at` on.

    known: what a pickle may name: "module.name" -> a value, or a function of the tuple of arguments.
    stored: makes something of a persistent id, torch's way to say where a tensor's numbers lie.
    """

    def __init__(self, path: Path, data: memoryview, at: int, known: Mapping[str, Any], stored: Call) -> None:
        self._path = path
        self._data = data
        self.at = at
        self._known = known
        self._stored = stored
        self._steps = 0
        self._text_bytes = 0

    def run(self) -> Any:
        """The object that the next pickle makes. FormatError: the pickle is damaged, or asks for what is not in the table."""
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        try:
            while (code := self._number("<B")) != ord("."):  # STOP
                self._steps += 1
                if self._steps > MAX_STEPS:
                    raise self.damaged(f"its program has more than {MAX_STEPS} instructions")
                self._step(code)
            return self._stack.pop()
        except (IndexError, ValueError, TypeError, KeyError):  # an empty stack, an unknown memo, a list where a dict belongs
            raise self.damaged(f"the program does not make sense at byte {self.at}") from None

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self._path}: the pickle in this file is damaged, or none of torch.save's: {what}")

    def _step(self, code: int) -> None:
        stack, memo = self._stack, self._memo
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            stack.append(self._number(NUMBERS[code]))
        elif code in TEXTS:
            stack.append(self._text(self._number(TEXTS[code])))
        elif code in PUTS:
            memo[self._number(PUTS[code])] = stack[-1]
        elif code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code in GETS:
            stack.append(memo[self._number(GETS[code])])
        elif code in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[code])]
            stack.append(tuple(reversed(items)))
        elif code == ord("t"):  # TUPLE
            stack.append(tuple(self._since_mark()))
        elif code == ord(")"):
            stack.append(())
        elif code == ord("]"):
            stack.append([])
        elif code == ord("}"):
            stack.append({})
        elif code == ord("("):
            stack.append(_MARK)
        elif code == ord("a"):  # APPEND
            self._extend([stack.pop()])
        elif code == ord("e"):  # APPENDS
            self._extend(self._since_mark())
        elif code == ord("s"):  # SETITEM
            value, key = stack.pop(), stack.pop()
            self._set([key, value])
        elif code == ord("u"):  # SETITEMS
            self._set(self._since_mark())
        elif code == 0x8A:  # LONG1
            stack.append(int.from_bytes(self._take(self._number("<B"), MAX_LONG_BYTES), "little", signed=True))
        elif code == ord("c"):  # GLOBAL
            module, name = self._line(), self._line()
            stack.append(self._named(module, name))
        elif code == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            stack.append(self._named(module, name))
        elif code == ord("Q"):  # BINPERSID
            stack.append(self._stored(stack.pop()))
        elif code == ord("R"):  # REDUCE
            arguments, call = stack.pop(), stack.pop()
            if not callable(call) or not isinstance(arguments, tuple):
                raise self.damaged(f"at byte {self.at} it calls what is no function")
            stack.append(call(arguments))
        elif code == ord("b"):  # BUILD: attributes of the object below, such as a state_dict's _metadata; none is needed
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise self.damaged(f"at byte {self.at} it sets attributes of what is no OrderedDict")
        elif code == 0x80:  # PROTO
            if not 2 <= (protocol := self._number("<B")) <= 5:
                raise self.damaged(f"its protocol is {protocol}, and only 2 to 5 are read")
        elif code == 0x95:  # FRAME: how many bytes may be read ahead; nothing is
            self._number("<Q")
        else:
            raise self.damaged(f"instruction 0x{code:02x} at byte {self.at - 1} is none that tensors need")

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.damaged(f"at byte {self.at} it asks for what is no name")
        full = f"{module}.{name}"
        if full not in self._known:
            raise FormatError(
                f"{self._path}: the pickle in this file asks for {full[:200]!r}, which is no part of a tensor; only "
                "tensors of float32, float16 and bfloat16 are read; anything else is another model, or an attack"
            )
        return self._known[full]

    def _number(self, kind: str) -> Any:
        return unpack_from(kind, self._take(calcsize(kind), 8))[0]

    def _take(self, n: int, limit: int) -> memoryview:
        if n > limit:
            raise self.damaged(f"something of {n} bytes stands at byte {self.at}, where {limit} are the limit")
        start, self.at = self.at, self.at + n
        if self.at > len(self._data):
            raise self.damaged("it is cut short; download the file again")
        return self._data[start : self.at]

    def _text(self, n_bytes: int) -> str:
        text = str(self._take(n_bytes, MAX_TEXT_BYTES - self._text_bytes), "utf-8", "surrogatepass")
        self._text_bytes += n_bytes
        return text

    def _line(self) -> str:
        """A name up to the end of its line."""
        line = bytes(self._data[self.at : self.at + MAX_NAME_BYTES])
        n = line.find(b"\n")
        if n < 0:
            raise self.damaged(f"the name at byte {self.at} has no end")
        self.at += n + 1
        return line[:n].decode("utf-8", "replace")

    def _since_mark(self) -> list[Any]:
        """Takes what was pushed since the last mark off the stack."""
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise self.damaged(f"there is no mark before byte {self.at}")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise self.damaged(f"at byte {self.at} it appends to what is no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, (str, int)) for key in items[::2]):
            raise self.damaged(f"at byte {self.at} it sets items of what is no dict, or under keys that are no names")
        target.update(zip(items[::2], items[1::2], strict=True))
