"""What a pickle makes Python allocate, bounded before it is loaded.

The unpickler of C takes memory for what an instruction names: 4 bytes that number a memo entry make it reserve up to
64 GiB, 4 bytes of a length up to 4 GiB. So the instructions are walked through once, without running any.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from typing import Any

from kdkit.errors import DatasetError

_MAX_INSTRUCTIONS = 1 << 21
_MAX_INTEGER_BYTES = 16
_NEWLINE, _UNKNOWN = -1, -2
_LENGTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4}
_LENGTHS |= {pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_CODES: dict[int, Any] = {ord(opcode.code): opcode for opcode in pickletools.opcodes}


def _fixed(code: int) -> int:
    """Bytes of an instruction's argument; -1 where it ends with a line, -2 where a length precedes it, or unknown."""
    argument = _CODES[code].arg if code in _CODES else None
    if argument is None:
        return 0 if code in _CODES else _UNKNOWN
    return argument.n if argument.n >= 0 else _NEWLINE if argument.n == pickletools.UP_TO_NEWLINE else _UNKNOWN


_FIXED = [_fixed(code) for code in range(256)]
_PREFIX = [_LENGTHS.get(_CODES[code].arg.n, 0) if code in _CODES and _CODES[code].arg else 0 for code in range(256)]


def _named(*names: str) -> set[int]:
    return {code for code, opcode in _CODES.items() if opcode.name in names}


_LONG_BINPUT, _PUT = _named("LONG_BINPUT"), _named("PUT")
# Instructions of a fixed length that allocate at most what they hold, and memo numbers below 2^16: one run of them is
# passed by the matcher of re, in C, because files of hundreds of views have tens of thousands. Numbers, bools, tuples,
# lists, dicts, and the memo of protocols 2 to 5.
_RUN = re.compile(
    rb"(?:[N\x88\x89)\]}(teu\x85\x86\x87\x94as0]|[Kqh].|M..|[Jj]....|G.{8}|r..\x00\x00){1,4096}", re.DOTALL
)
_TWO_LINES, _INTEGERS = _named("GLOBAL", "INST"), _named("LONG1", "LONG4")


def check_pickle_size(pickled: bytes) -> None:
    """Checks that loading takes no more memory than some hundred times the pickle's size.

    Raises:
        DatasetError: a memo number, a length or the number of instructions is beyond what `pickled` can fill.
    """
    place, end, left = 0, len(pickled), _MAX_INSTRUCTIONS
    while place < end:
        if run := _RUN.match(pickled, place):
            left -= run.end() - place  # at least as many as there are
            place = run.end()
            if left < 0:
                raise DatasetError(f"more than {_MAX_INSTRUCTIONS:,} instructions")
            continue
        code = pickled[place]
        place += 1
        left -= 1
        if code == pickle.STOP[0]:
            return
        size = _FIXED[code]
        if size >= 0:
            if code in _LONG_BINPUT and int.from_bytes(pickled[place : place + 4], "little") > end:
                raise DatasetError("a memo number that no pickle of this size has")
            place += size
        elif size == _NEWLINE:
            line = pickled.find(b"\n", place)
            if code in _TWO_LINES:
                line = pickled.find(b"\n", line + 1)
            if line < 0 or (code in _PUT and not pickled[place:line].isdigit()) or line - place > _max_line(code, end):
                raise DatasetError("an instruction without end")
            place = line + 1
        else:
            place = _after_counted(pickled, place, code)
        if left < 0:
            raise DatasetError(f"more than {_MAX_INSTRUCTIONS:,} instructions")


def _max_line(code: int, num_bytes: int) -> int:
    """Digits of a memo number; other lines are bounded by the file."""
    return len(str(num_bytes)) if code in _PUT else num_bytes


def _after_counted(pickled: bytes, place: int, code: int) -> int:
    """Where an instruction ends whose argument is preceded by its length."""
    prefix = _PREFIX[code]
    if not prefix:
        raise DatasetError(f"the unknown instruction {code:#04x}")
    size = int.from_bytes(pickled[place : place + prefix], "little")
    if place + prefix + size > len(pickled) or (code in _INTEGERS and size > _MAX_INTEGER_BYTES):
        raise DatasetError(f"an argument of {size:,} bytes")
    return place + prefix + size
