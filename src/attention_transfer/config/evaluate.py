"""What `evaluate` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config, below_one, model_problems
from attention_transfer.config.choices import Device, FrozenProbe, SplitName


@dataclass(frozen=True, kw_only=True)
class Evaluate(Config):
    """Settings of `evaluate`."""

    models: list[str] = field(kw_only=False)
    """Classifiers: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>; of several, each two are
    compared on the same images."""

    data: str | None = None
    """Labelled images, in the forms of `load_data`; default the data set of the runs."""

    split: SplitName = "test"
    """Which of its images."""

    frozen: FrozenProbe | None = None
    """Judge the features of models that need no classification layer: knn, the 20 nearest training images, by DINO's
    protocol; linear, a linear probe, whose penalty validation images choose."""

    ensemble: bool = False
    """Also judge all models together, by the mean of their class probabilities."""

    shift: str | list[str] | None = None
    """Shifted images of the same classes, or several sets in a list: ImageNet-A, -R, -Sketch, -V2 or -C as published,
    what `corrupt` wrote, or any folder whose class folders are called as the data set's classes."""

    repair: bool = False
    """Also judge each model with a test-time register: the hidden units that make artefacts of patches, found on 50
    training images, are moved to a token of their own. Plain ViTs of timm only."""

    bins: int = 15
    """Bins of equal width for calibration."""

    limit: int | None = None
    """How many images to take, at even distances; default all."""

    image_size: int | None = None
    """Input pixels, height and width; default each model's own."""

    batch_size: int = 64
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """Folder for evaluation.json and the reliability diagram reliability.png, or a .json file alone; default shows
    tables only."""

    overwrite: bool = False
    """Replace these files."""

    def problems(self) -> list[str]:
        """No models or the same twice, and numbers below 1."""
        found = model_problems(self.models) + below_one(batch_size=self.batch_size, limit=self.limit)
        if self.ensemble and len(self.models) < 2:
            found.append("an ensemble needs at least two models; name more, or leave ensemble out")
        return found + ([] if self.bins >= 1 else [f"bins is {self.bins}; give at least 1"])
