"""What `export` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config
from attention_transfer.config.choices import Format


@dataclass(frozen=True, kw_only=True)
class Export(Config):
    """Settings of `export`."""

    run: str = field(kw_only=False)
    """Folder of a finished run of `train`."""

    to: Format = "timm"
    """timm for `timm.create_model("local-dir:…", pretrained=True)`; hf for transformers' `from_pretrained` and
    `pipeline`; onnx for one file, which holds a copied student's teacher too, as far as it is needed."""

    out: str | None = None
    """Folder of the exported model; default export/<format> in the run's folder."""

    batch_size: int | None = None
    """Images a forward pass of an ONNX model takes; default any number."""

    overwrite: bool = False
    """Replace an exported model in that folder."""

    def problems(self) -> list[str]:
        """Words, and a batch of no image."""
        if self.batch_size is None or self.batch_size >= 1:
            return super().problems()
        found = f"batch_size is {self.batch_size}; give at least 1 image, or leave it out for any number"
        return [*super().problems(), found]
