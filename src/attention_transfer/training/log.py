"""A run's `log.txt`: what the terminal shows, and the details."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attention_transfer.engine.launchers import this_process
from attention_transfer.errors import Interrupted, UserError, note_log
from attention_transfer.streams import readable
from attention_transfer.writing import writing


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what the library logs inside the block to a file, and why it ends; of several processes, the first does.

    An error that nobody expects gets there with its traceback, and remembers the file (`errors.log_of`).
    """
    log = logging.getLogger("attention_transfer")
    if this_process() > 0:
        log.setLevel(logging.WARNING)
        yield
        return
    with writing(path):
        handler = _File(path, encoding="utf-8")
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(_Readable("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # of a full disk, which may be what ended it
            _note_end(log, error, path)
        raise
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        with writing(path):  # what is still to be written may find the disk full
            handler.close()


def _note_end(log: logging.Logger, error: BaseException, path: Path) -> None:
    """Write, to the file alone, why the work ended."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        log.debug("stopped")
    elif isinstance(error, UserError | OSError) or not isinstance(error, Exception):
        log.debug("ended: %s", error)
    else:
        log.debug("ended by an error", exc_info=error)
        note_log(error, path)


class _Readable(logging.Formatter):
    """Lines that can be encoded, and shown, whatever a file is called."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return readable(super().format(record))


class _File(logging.FileHandler):
    """Raises what is wrong with the disk, where Python prints a traceback and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """As the work would end at the next file anyway."""
        error = sys.exception()
        assert error is not None
        with writing(Path(self.baseFilename)):
            raise error
