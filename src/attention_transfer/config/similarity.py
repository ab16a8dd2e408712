"""What `similarity` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attention_transfer.config.base import Config, below_one
from attention_transfer.config.choices import Device, SplitName


@dataclass(frozen=True, kw_only=True)
class MeasureSimilarity(Config):
    """Settings of `similarity`."""

    a: str = field(kw_only=False)
    """One network: the folder of a run, or a model in the forms of `load_vit`, e.g. timm/<name>."""

    b: str | None = field(default=None, kw_only=False)
    """Another, with the same patch grid; with what A was fine-tuned from, the result is A's drift. May be left out with
    epochs, for the run's own teacher, and with repair, for A itself."""

    data: str | None = field(default=None, kw_only=False)
    """Images, in the forms of `load_data`, or a folder of images without classes; default the data set of the runs."""

    split: SplitName = "test"
    """Which images of a data set that has splits."""

    layers: int | str | list[int] | None = None
    """Blocks of both: n for the last n, "[0,5]", "first 6", "every 2"; default all."""

    epochs: bool = False
    """Compare each epoch of the run A whose weights are kept: its drift over the training, which keeps them with
    recipe.keep_epochs."""

    repair: bool = False
    """Give B a test-time register: the hidden units that make artefacts of patches, found on 50 images, are moved to a
    token of their own. Where B is left out, it is A, so that the result is what a repair changes. Plain ViTs of timm
    only."""

    rows: int | Literal["all", "class"] = 8
    """Query rows that are compared: n drawn for each image, all, or class for the class token's."""

    limit: int | None = 200
    """How many images to take, at even distances; null for all."""

    image_size: int | None = None
    """Input pixels of both, height and width; default each model's own."""

    batch_size: int = 8
    """Images a forward pass, which is also the minibatch of CKA; that needs 4."""

    seed: int = 0
    """Of the draw of rows."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """Folder for similarity.json and the heat maps similarity.png, or a .json file alone; default shows tables only."""

    overwrite: bool = False
    """Replace these files."""

    def problems(self) -> list[str]:
        """Numbers below 1, no second network, and a size that no epoch has."""
        found = below_one(batch_size=self.batch_size, limit=self.limit)
        if self.b is None and not self.epochs and not self.repair:
            found.append("b is left out; name a second network, or set epochs to compare a run with its teacher")
        if self.epochs and self.image_size is not None:
            found.append("image_size is given, but the weights of epochs fit the run's own size; leave it out")
        return found + (
            [f"rows is {self.rows}; give 1 row or more"] if isinstance(self.rows, int) and self.rows < 1 else []
        )
