"""Storages of Optuna: a journal in a folder, or a database, and what is said where one can't be reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from attention_transfer.errors import UserError

JOURNAL = "study.journal"
"""In a study's folder, unless it is in a database."""

_PACKAGES = {  # that hold a driver, where they are called otherwise
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "mysqldb": "mysqlclient",
    "mysqlconnector": "mysql-connector-python",
}


def storage_at(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a study.

    Raises:
        UserError: it can't be reached, needs a package, or is damaged.
    """
    if url is None:
        journal = str(folder / JOURNAL)
        lock = JournalFileOpenLock(journal, grace_period=10)  # seconds after which a dead process's lock is broken
        try:
            return JournalStorage(JournalFileBackend(journal, lock_obj=lock))
        except ValueError as error:  # a line that is no JSON
            raise UserError(
                f"{journal} is damaged ({error}); remove it: finished runs are not run again, and the same command "
                "goes on"
            ) from error
    with quiet(), answering(url):
        return RDBStorage(url)


@contextmanager
def answering(url: str | None) -> Iterator[None]:
    """Turn what databases raise inside the block into a `UserError`.

    Args:
        url: of the database while it is opened; `None` afterwards.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except StorageInternalError as error:
        raise lost(error) from error
    except SQLAlchemyError as error:
        raise UserError(f"storage {without_password(url)} can't be used ({_first_line(error)})") from error
    except ImportError as error:
        if url is None:
            raise
        driver = make_url(url).get_dialect().driver
        raise UserError(
            f"storage {without_password(url)} needs the driver {driver}, which can't be loaded "
            f"({_first_line(error.__cause__ or error)}); install it: pip install {_PACKAGES.get(driver, driver)}"
        ) from error


def lost(error: Exception) -> UserError:
    """What to say of a database that does not answer any more."""
    return UserError(
        f"the study's storage can't be reached ({_first_line(error.__cause__ or error)}); what is finished stays, and "
        "the same command goes on once it is back"
    )


def without_password(url: str | None) -> str | None:
    """A database's URL as it may be shown and kept."""
    if url is None:
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        shown: str = make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
    return shown


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Optuna says of a new study."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
