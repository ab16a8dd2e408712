"""Errors that the user can fix, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something in the input is wrong and the message says what to do; the command line exits with code 2."""


class UserErrors(UserError):
    """Several mistakes found at once, a line each, so that nobody has to fix them one run at a time."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)
        super().__init__("\n".join(messages))


class Interrupted(Exception):
    """The user asked to stop; the same command continues what was begun."""


_LOGGED = "attention-transfer: the traceback is in "


def note_log(error: Exception, log: object) -> None:
    """Attach the path of the file that an error's traceback was written to."""
    error.add_note(f"{_LOGGED}{log}")


def log_of(error: Exception) -> str | None:
    """The file that an error's traceback was written to, if any."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(_LOGGED)]
    return notes[0].removeprefix(_LOGGED) if notes else None


def raise_all(messages: Sequence[str]) -> None:
    """Raise all collected mistakes at once, if there are any."""
    if len(messages) == 1:
        raise UserError(messages[0])
    if messages:
        raise UserErrors(messages)


def nearest(name: str, options: Iterable[str]) -> str:
    """A half-sentence that names the closest valid option, or all of them where none is close."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, cut to a sentence's length, or else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
