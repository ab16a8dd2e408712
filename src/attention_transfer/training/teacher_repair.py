"""A run's teacher with a test-time register: found on the run's own images, and written down in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from attention_transfer.data import Images, eval_transform
from attention_transfer.errors import UserError
from attention_transfer.text_files import read_json
from attention_transfer.training.run_files import NUMBER, Shape, misfit
from attention_transfer.vit import NoArtefacts, RegisterNeurons, add_register, describe, find_register_neurons

REPAIRED_ON = 50
"""Images on which register neurons are found, at most."""

RECORD = "repair.json"
"""What a run calls the file that says what was repaired."""

_SHAPE: Shape = {"images": int, "units": dict, "block": int, "artefacts": NUMBER}


@dataclass(frozen=True)
class TeacherRepair:
    """What was found in a teacher.

    Attributes:
        images: how many images it was looked for on.
        neurons: the units that make artefacts; `None` where there are no artefacts.
    """

    images: int
    neurons: RegisterNeurons | None

    def __str__(self) -> str:
        if self.neurons is None:
            return f"no artefacts on {self.images} images, so that it is left as it is"
        return f"{self.neurons}, found on {self.images} images"

    @property
    def text(self) -> str:
        """As its file has it."""
        return json.dumps({"images": self.images, **asdict(self.neurons or RegisterNeurons({}, 0, 0.0))}) + "\n"

    @classmethod
    def of_run(cls, folder: Path) -> TeacherRepair:
        """Read it from the folder of a run.

        Raises:
            UserError: the file is gone or damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            raise UserError(f"{path} is gone, which says how the teacher was repaired; restore it")
        content = read_json(path)
        unsound = f"{path} does not say how a teacher was repaired"
        if problem := misfit(content, _SHAPE):
            raise UserError(f"{unsound} ({problem}); restore it")
        try:
            units = {int(block): tuple(map(int, places)) for block, places in content["units"].items()}
        except (TypeError, ValueError) as error:
            raise UserError(f"{unsound} (units: {error}); restore it") from error
        neurons = RegisterNeurons(units, content["block"], content["artefacts"]) if units else None
        return cls(content["images"], neurons)


def repair_teacher(teacher: nn.Module, images: Images, begun: Path | None) -> TeacherRepair:
    """Give a run's teacher a test-time register, in place, if it has artefacts.

    Args:
        teacher: as it was loaded, on the CPU.
        images: the run's training images, of which some are looked at, at even distances.
        begun: the folder of a run that may have begun before, and that repairs by the same neurons then.

    Raises:
        UserError: it can't be repaired.
    """
    if begun is not None and (begun / RECORD).is_file():
        repair = TeacherRepair.of_run(begun)
    else:
        pictures = [images[i] for i in range(0, len(images), math.ceil(len(images) / REPAIRED_ON))]
        try:
            repair = TeacherRepair(len(pictures), neurons_on(teacher, pictures))
        except NoArtefacts:
            repair = TeacherRepair(len(pictures), None)
    if repair.neurons is not None:
        add_register(teacher, repair.neurons)
    return repair


def neurons_on(vit: nn.Module, images: Sequence[Image.Image], *, batch: int = 8) -> RegisterNeurons:
    """Find the register neurons of a network on images, as it sees them in evaluation.

    Args:
        vit: the network, in eval mode.
        images: of any sizes.
        batch: images a forward pass.

    Raises:
        NoArtefacts: there are none.
        UserError: it is none of timm's plain ViTs.
    """
    transform, like = eval_transform(describe(vit)), next(vit.parameters())
    inputs = torch.stack([transform(image) for image in images]).to(like.device, like.dtype)
    return find_register_neurons(vit, inputs.split(batch))
