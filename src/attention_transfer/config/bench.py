"""What `bench` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config
from attention_transfer.config.choices import Device


@dataclass(frozen=True, kw_only=True)
class MeasureCost(Config):
    """Settings of `bench`."""

    model: str = field(default="timm/vit_small_patch16_224", kw_only=False)
    """Architecture of teacher and student, in the forms of load_vit; weights are random."""

    methods: str = "floor,finetune,copy,distill,distill-reference,gta,logit-kd"
    """Separated by commas: floor, finetune, logit-kd, copy, distill (and each of its implementations:
    distill-reference, distill-chunked, distill-flash, distill-triton), materialised (distillation by
    maps in the step's own dtype), gta. One that can't serve here, or for which memory is too small, is left out, with
    the reason."""

    image_sizes: str = "224"
    """Input pixels, height and width, separated by commas."""

    batch_size: int = 8
    """Images a step, at the first image size; fewer at larger ones, so that tokens a step stay alike."""

    repeats: int = 10
    """How often each method runs."""

    device: Device = "cpu"
    """Where to compute: cpu, cuda or mps; auto takes a GPU where there is one. MPS counts no peak of memory: there it
    is what is allocated after a step."""

    dtype: str = "float32"
    """float32, or bfloat16 or float16 for autocast."""

    compiled: bool = False
    """Run the steps through torch.compile."""

    out: str = "runs/bench"
    """Folder for bench.json and bench.png."""

    overwrite: bool = False
    """Replace these two in that folder."""

    def problems(self) -> list[str]:
        """Words, a type of numbers that there is not, and numbers below 1."""
        found = super().problems()
        if self.dtype not in ("float32", "bfloat16", "float16"):
            found.append(f"dtype is {self.dtype}; choose float32, bfloat16 or float16")
        if min(self.batch_size, self.repeats) < 1:
            found.append("batch_size and repeats must be at least 1")
        return found
