"""A trained run as a network again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.training import RunFolder, read_rules
from attention_transfer.transfer import AttentionTransfer, OperandRule
from attention_transfer.vit import Pairing, ViTSpec, describe, labels_of, load_vit


class Network(nn.Module):
    """Class logits of a trained student; a copied student runs with its teacher inside."""

    def __init__(self, transfer: AttentionTransfer) -> None:
        super().__init__()
        self.transfer = transfer

    @property
    def student(self) -> nn.Module:
        """The student alone; its attention, where it is copied, comes from the teacher."""
        return self.transfer.student

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, classes), of normalised images (B, channels, height, width)."""
        return self.transfer(images).logits  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to use.

    Attributes:
        network: in eval mode; its forward gives logits.
        spec: what its input must be.
        classes: class names.
        summary: the content of `summary.json`.
        path: the folder.
    """

    network: Network
    spec: ViTSpec
    classes: tuple[str, ...]
    summary: dict[str, Any]
    path: Path


def load_run(path: str | Path) -> LoadedRun:
    """Load a finished run of `train`, with its teacher where the student copies attention.

    Raises:
        UserError: the folder holds no finished run of `train`, or the teacher is no longer where it was.
    """
    folder = RunFolder(Path(path))
    if not folder.has("config.yaml"):
        raise UserError(f"{path} holds no run (no config.yaml); name the folder that `train` wrote")
    config = folder.config()
    if "preset" not in config:
        raise UserError(f"{path} holds no classifier but a pre-trained teacher; name a run of `train`")
    summary = folder.summary()
    student = load_vit(str(folder.path))
    rules = [rule for rule in read_rules(config["rules"]) if isinstance(rule, OperandRule)]
    teacher = None
    if rules:
        try:
            teacher = _teacher(folder, config)
        except UserError as error:
            raise UserError(
                f"the student in {path} copies its teacher's attention, but the teacher is gone: {error}"
            ) from error
    pairing = Pairing(**config["pairing"]) if rules and config.get("pairing") else None
    transfer = AttentionTransfer(teacher, student, rules, pairing=pairing)
    if transfer.head_pairs is not None:
        transfer.head_pairs.load_state_dict({"pairs": torch.tensor(summary["head_pairs"])})
    network = Network(transfer).eval()
    spec = describe(student)
    classes = tuple(labels_of(student) or map(str, range(spec.classes)))
    return LoadedRun(network, spec, classes, summary, folder.path)


def _teacher(folder: RunFolder, config: dict[str, Any]) -> nn.Module:
    """The teacher that was saved with the run; runs of before that have only its name."""
    own = folder.path / "teacher"
    if own.is_dir():
        return load_vit(str(own))
    return load_vit(config["teacher"], pretrained=config["pretrained"], image_size=config["image_size"])
