"""The process of a command: its streams, signals and exit codes. What is heavy is loaded once it can be stopped."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

from attention_transfer.errors import Interrupted, UserError, log_of
from attention_transfer.streams import guard, lost_output, readable

FAILED, WRONG, STOPPED = 1, 2, 130
"""Exit codes: an error of this program, one that the user can fix, Ctrl-C or SIGTERM."""

_Handler = Callable[[int, FrameType | None], object]


def main() -> NoReturn:
    """Entry point: 0 done, 2 wrong input or a full disk (a sentence says what), 130 stopped by Ctrl-C or SIGTERM."""
    guard()
    _listen(_leave)
    import_module("attention_transfer.parser")
    _listen(_stop)
    log, handler = logging.getLogger("attention_transfer"), _Lines(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        code = _ended(sys.argv[1:])
    finally:
        log.removeHandler(handler)
    sys.exit(code)


class _Lines(logging.Handler):
    """Shows what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        from attention_transfer.ui import show_line

        show_line(self.format(record))


def run(arguments: Sequence[str]) -> None:
    """Parse and call a verb."""
    from attention_transfer.parser import parse

    words = [word for word in arguments if word not in ("-v", "--verbose")]
    if len(words) < len(arguments):
        log = logging.getLogger("attention_transfer")
        log.setLevel(logging.DEBUG)
        for handler in log.handlers:
            handler.setLevel(logging.DEBUG)
    verb, config = parse(words)
    verb.run(config)


def print_error(message: str) -> None:
    """What is wrong, after a word that says so."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print("\x1b[1;31merror:\x1b[0m" if colour else "error:", readable(message), file=sys.stderr)


def _ended(arguments: Sequence[str]) -> int:
    """Run a command to its end, good or bad, and say what is to be said of it; its exit code."""
    from attention_transfer.verbs import VERBS

    goes_on = any(verb in VERBS and VERBS[verb].resumes for verb in arguments[:1])
    then = "the same command goes on" if goes_on else "give the command again"
    try:
        run(arguments)
    except SystemExit as ended:  # of --help and --print_config
        return int(ended.code or 0)
    except UserError as error:
        print_error(str(error))
        return WRONG
    except (Interrupted, KeyboardInterrupt):
        print("stopped; the same command goes on from the last checkpoint" if goes_on else "stopped", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a disk that fills up, a folder that goes away
        print_error(f"{_in_words(error)}, then {then}")
        return WRONG
    except MemoryError:
        print_error("this machine has too little memory for that; ask for less at once, such as a smaller batch_size")
        return WRONG
    except Exception as error:  # noqa: BLE001 - nothing is hidden: the traceback goes into a file
        print_error(_of_a_bug(error))
        return FAILED
    lost = None if goes_on else lost_output()
    if lost is not None:
        print_error(f"standard output can't be written ({lost.strerror}); fix that, then give the command again")
    return WRONG if lost is not None else 0


def _listen(handler: _Handler) -> None:
    """Let Ctrl-C and SIGTERM call a function, where they are not ignored, as in the background of a script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """End at once: nothing is begun yet, and what is being loaded could not pass an exception on."""
    sys.stderr.write("stopped\n")
    os._exit(STOPPED)


def _stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """The first signal ends the work, and takes away what is half-written; the second ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    if (ui := sys.modules.get("attention_transfer.ui")) is not None:  # else no bar hides it
        ui.show_cursor()  # for which the second leaves no time
    raise KeyboardInterrupt


def _in_words(error: OSError) -> str:
    """What is wrong with a disk, and what to do."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}the disk is full; make space"
    return f"{place}{error.strerror or error}; fix that"


def _of_a_bug(error: Exception) -> str:
    """A sentence about an error that nobody expected, whose traceback is in a file: of the run, or a new one."""
    log = log_of(error)
    if log is None:
        text = "".join(traceback.format_exception(error))
        with tempfile.NamedTemporaryFile(
            "w", prefix="attention-transfer-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        log = file.name
    return (
        f"this is a bug of attention-transfer ({type(error).__name__}: {error}); please report it with its traceback, "
        f"which is in {log}"
    )


if __name__ == "__main__":
    main()
