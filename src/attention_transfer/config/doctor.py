"""What `doctor` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from attention_transfer.config.base import Config, below_one
from attention_transfer.config.pairing import PairingSettings


@dataclass(frozen=True, kw_only=True)
class Doctor(Config):
    """Settings of `doctor`."""

    teacher: str = field(kw_only=False)
    """timm/<name>, hf/<name or folder>, torchvision/<name>, a folder or a weights file."""

    student: str | None = field(default=None, kw_only=False)
    """The same, or "standard" for a plain ViT of the teacher's size; default the student that `student_like(teacher)`
    makes."""

    pretrained: bool | str = False
    """Also load the teacher's weights: true, or a weights file; default only its architecture."""

    data: str | None = None
    """Images on which the teacher's attention is looked at as well, in the forms of `load_data`, or a folder of images
    without classes; that needs the weights."""

    limit: int = 50
    """How many of these images, at even distances."""

    image_size: int | None = None
    """Input pixels of both, height and width; default each model's own."""

    pairing: PairingSettings | None = None
    """How unequal parts are mapped."""

    def problems(self) -> list[str]:
        """Images without weights, or without what reads them."""
        found = super().problems() + below_one(limit=self.limit)
        if self.data is not None and self.pretrained is False:
            found.append("data is looked at with the teacher's weights; add --pretrained true, or name a weights file")
        if self.data is not None and (
            missing := [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
        ):
            found.append(f'data needs {" and ".join(missing)}; run: pip install "attention-transfer[train]"')
        return found
