"""What `status` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config


@dataclass(frozen=True, kw_only=True)
class Status(Config):
    """Settings of `status`."""

    folder: str = field(kw_only=False)
    """Folder of a comparison or a sweep."""

    storage: str | None = None
    """URL of the database that keeps its study, where that has a password; else the folder knows it."""
