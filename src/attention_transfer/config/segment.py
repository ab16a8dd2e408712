"""What `segment` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attention_transfer.config.base import Config, below_one, model_problems
from attention_transfer.config.choices import Device, MapSource, SplitName


@dataclass(frozen=True, kw_only=True)
class Segment(Config):
    """Settings of `segment`."""

    models: list[str] = field(kw_only=False)
    """Networks to look at, side by side: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>."""

    data: str | None = None
    """Images with masks: digit-scenes, digit-scenes-shift, character-scenes, the folder of a published data set with
    masks (PASCAL VOC 2012, CUB-200-2011, Pets), or a folder of images; default the data set of the runs."""

    masks: str | None = None
    """Folder of the masks of a folder of images, with the same names but for the suffix. 0 is background, and each
    other value an object."""

    split: SplitName = "test"
    """Which images of a data set, or of a folder that has folders for train, val and test; others are taken whole."""

    source: MapSource = "attention"
    """attention of a block, or one map of all blocks: rollout, or relevance for the predicted class."""

    layers: int | str | list[int] | None = 1
    """Blocks whose attention is taken: n for the last n, "[0,5]", "first 6", "every 2", or all."""

    mass: float | list[float] = 0.6
    """Share of the attention that the foreground holds, or several in a list."""

    void: int | Literal["none"] | None = None
    """Value of pixels that count for nothing, or none; default 255 for PASCAL VOC, none for others."""

    limit: int | None = None
    """How many images to take, at even distances; default all."""

    repair: bool = False
    """Look at each network once more with a test-time register: the hidden units that make artefacts of patches, found
    on 50 training images without their masks (or else on those that are looked at), are moved to a token of their
    own. Plain ViTs of timm only."""

    training: int = 200
    """How many training images choose the fixed head and the size of the box; 0 leaves the fixed head out."""

    image_size: int | None = None
    """Input pixels, height and width; default each model's own."""

    batch_size: int = 8
    """Images a forward pass."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """.json file for the result, with the scores of each image; default shows a table only."""

    overwrite: bool = False
    """Replace that file."""

    def problems(self) -> list[str]:
        """No models, and numbers out of bounds."""
        found = model_problems(self.models)
        masses = self.mass if isinstance(self.mass, list) else [self.mass]
        if not masses or not all(0 < mass <= 1 for mass in masses):
            found.append(f"mass is {self.mass}; give a share above 0 and at most 1")
        if self.masks is not None and self.data is None:
            found.append("masks are given without their images; name the folder of these with --data")
        found += below_one(batch_size=self.batch_size, limit=self.limit)
        return found + ([] if self.training >= 0 else [f"training is {self.training}; give 0 images or more"])
