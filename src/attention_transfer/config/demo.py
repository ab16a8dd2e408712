"""What `demo` is told."""

from __future__ import annotations

from dataclasses import dataclass

from attention_transfer.config.base import Config


@dataclass(frozen=True, kw_only=True)
class Demo(Config):
    """Settings of `demo`."""

    quick: bool = False
    """A smoke test under a minute, on handwritten digits alone: one seed, two epochs; its numbers mean nothing."""

    full: bool = False
    """The experiment of the README: six seeds, 5 and 20 labels a class, three times the steps."""

    out: str = "runs/demo"
    """Folder for everything; quick and full get one of their own beside it."""

    def problems(self) -> list[str]:
        """Quick and full at once."""
        both = ["quick and full exclude each other; choose one"] if self.quick and self.full else []
        return super().problems() + both
