"""Standard input, output and error as a command may find them: closed, full, without a reader, for ASCII alone."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ERRORS = "attention_transfer.readable"
"""How an encoding that lacks a character writes it; of text for people, since nothing can be read back from it."""

_LIKE = {
    "…": "...",
    "–": "-",
    "—": "-",
    "×": "x",
    "÷": "/",
    "±": "+/-",
    "→": "->",
    "·": "-",
    "’": "'",
    "“": '"',
    "”": '"',
}
_NOBODY_READS = (errno.EPIPE, errno.EBADF)  # `| head` has seen enough; `>&-` asked for none


def readable(text: str) -> str:
    r"""Text that is safe to show: bytes of a name that are no UTF-8 and control characters are written as `\xff`."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _encode_readably(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_LIKE.get(character) or _escaped(character) for character in missing), error.end


codecs.register_error(ERRORS, _encode_readably)


class _Descriptor(io.FileIO):
    """A descriptor of the process that is written to as far as that is possible; the rest is dropped, never raised."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what can be written."""
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking, and it is full
                select.select([], [self], [])
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes
        return written


_guarded: dict[str, _Descriptor] = {}


def guard() -> None:
    """Let nothing that is printed stop this process, whoever prints it.

    Descriptors that are closed are opened on nothing: otherwise the next file that is opened would get their number,
    and with it whatever is printed. Streams that were replaced, as tests do, are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    if os.name != "posix":  # where a terminal is more than a descriptor
        return
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and name not in _guarded:
            _guarded[name] = _Descriptor(number)
            setattr(sys, name, _over(_guarded[name], stream, by_line=number == 2))


def lost_output() -> OSError | None:
    """Why a part of standard output could not be written; `None` where all was, or nobody wanted it."""
    sys.stdout.flush()
    error = _guarded["stdout"].error if "stdout" in _guarded else None
    return None if error is None or error.errno in _NOBODY_READS else error


def _over(descriptor: _Descriptor, stream: TextIO | None, *, by_line: bool) -> TextIO:
    """A text stream as Python had made it, but for what happens where it can't be written."""
    return io.TextIOWrapper(
        io.BufferedWriter(descriptor),
        encoding="utf-8" if stream is None else stream.encoding,
        errors=ERRORS,
        line_buffering=by_line or descriptor.isatty(),
        write_through=isinstance(stream, io.TextIOWrapper) and stream.write_through,
    )
