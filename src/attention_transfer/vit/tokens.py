"""What the tokens of a vision transformer are, and which rows of the attention stand for the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Query = Literal["class", "mean", "pool"]
"""Whose attention stands for the image: the class token's, the mean over the patches', or the attention-pool head's."""


@dataclass(frozen=True)
class Tokens:
    """The kinds of tokens in a sequence: prefix tokens, then patches row by row, then suffix tokens.

    Attributes:
        prefix: kinds of the tokens before the patches: "class" (always first), "distillation", "register".
        suffix: number of tokens after the patches (the detection tokens of YOLOS).
    """

    prefix: tuple[str, ...] = ("class",)
    suffix: int = 0

    @property
    def class_token(self) -> bool:
        """Whether token 0 is a class token."""
        return "class" in self.prefix

    def __str__(self) -> str:
        """Kinds and numbers, e.g. "class, 4 × register"."""
        kinds = (*self.prefix, *("detection",) * self.suffix)
        names = [f"{kinds.count(k)} × {k}" if kinds.count(k) > 1 else k for k in dict.fromkeys(kinds)]
        return ", ".join(names) or "none"

    def patches(self, total: int) -> slice:
        """Where the patches are in a sequence of `total` tokens."""
        return slice(len(self.prefix), total - self.suffix)
