"""What `predict` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config
from attention_transfer.config.choices import Device, Probabilities


@dataclass(frozen=True, kw_only=True)
class Predict(Config):
    """Settings of `predict`."""

    run: str = field(kw_only=False)
    """Folder of a finished run of `train` or of an exported model; or a model, e.g. timm/<name>."""

    images: list[str] = field(kw_only=False)
    """Image files, folders (with all below them), or patterns in quotes, e.g. "photos/**/*.jpg"."""

    top: int | None = None
    """How many classes to give for each; default 3, or all where there are fewer."""

    probabilities: Probabilities = "top"
    """top for those of the classes that are given, all for those of every class, in the file."""

    batch_size: int = 64
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    overlay: str | None = None
    """Folder for a picture of each image with the attention of the last block over it."""

    out: str | None = None
    """File for the predictions, .csv or .json; default shows a table only."""

    overwrite: bool = False
    """Replace that file, and pictures of the same names that were drawn before."""

    def problems(self) -> list[str]:
        """Words, and numbers below 1."""
        found = super().problems()
        if self.top is not None and self.top < 1:
            found.append(f"top is {self.top}; give at least 1 class")
        if self.batch_size < 1:
            found.append(f"batch_size is {self.batch_size}; give at least 1 image")
        return found
