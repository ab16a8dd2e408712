"""Load a trained run, an exported model or any other classifier as a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.training import RunFolder, TrainedConfig, read_rules
from attention_transfer.training.teacher_repair import TeacherRepair
from attention_transfer.transfer import AttentionTransfer, OperandRule
from attention_transfer.vit import Pairing, ViTSpec, describe, labels_of, load_vit
from attention_transfer.vit.libraries import library_names


class Classifier(nn.Module):
    """A trained student that gives class logits; a student that copies attention runs with its teacher inside."""

    def __init__(self, transfer: AttentionTransfer) -> None:
        super().__init__()
        self.transfer = transfer

    @property
    def student(self) -> nn.Module:
        """The student alone; without its teacher, a student that copies attention does not work as trained."""
        return self.transfer.student

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, classes), of normalised images (B, channels, height, width)."""
        return self.transfer(images).logits  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run or an exported model, ready to use.

    Attributes:
        network: in eval mode, on the CPU; its forward gives logits.
        spec: describes the student and its input.
        classes: class names, or their numbers if the model has no names.
        summary: the content of `summary.json`; empty for a model that is not a run.
        path: the folder, or the name of a model without one.
    """

    network: Classifier
    spec: ViTSpec
    classes: tuple[str, ...]
    summary: dict[str, Any]
    path: Path


def load_run(path: str | Path) -> LoadedRun:
    """Load a finished run of `train`, with its teacher if the student copies attention, or an exported model.

    A run folder is self-contained: it may be moved, and the original teacher deleted.

    Args:
        path: the folder of a run, or one that `export` wrote in the format of timm or transformers.

    Raises:
        UserError: the folder holds no finished run of `train` and no classifier, or the teacher is gone.
    """
    folder = RunFolder(Path(path))
    if folder.has("config.yaml"):
        return _loaded(folder)
    if folder.has("config.json"):
        return _classifier(str(path))
    if folder.has("model.onnx"):
        raise UserError(f"{path} holds an ONNX model, which onnxruntime runs; name the run that it was exported from")
    raise UserError(f"{path} holds no run (no config.yaml); name the folder that `train` wrote")


def load_classifier(spec: str) -> LoadedRun:
    """As [`load_run`][attention_transfer.load_run], but also load any classifier that `load_vit` makes: `timm/<name>`.

    Raises:
        UserError: there is no such run or model, or it has no classification layer.
    """
    if Path(spec).is_dir():
        return load_run(spec)
    if spec.partition("/")[0] not in (*library_names(), "builtin") and not Path(spec).exists():
        raise UserError(f"there is no run {spec}; check the path, or name a model as timm/<name>")
    return _classifier(spec)


def _classifier(spec: str) -> LoadedRun:
    student = load_vit(spec)
    known = describe(student)
    if not known.classes:
        raise UserError(f"{spec} has no classification layer; name a run of `train`, or a model with classes")
    return LoadedRun(
        Classifier(AttentionTransfer(None, student, [])).eval(), known, _names(student, known), {}, Path(spec)
    )


def _names(student: nn.Module, spec: ViTSpec) -> tuple[str, ...]:
    return tuple(labels_of(student) or map(str, range(spec.classes)))


def _loaded(folder: RunFolder) -> LoadedRun:
    path, config = folder.path, folder.trained_config()
    summary = folder.summary()
    student = load_vit(str(folder.path))
    rules = [rule for rule in read_rules(config.rules) if isinstance(rule, OperandRule)]
    teacher = None
    if rules:
        try:
            teacher = teacher_of(folder, config)
        except UserError as error:
            raise UserError(
                f"the student in {path} copies its teacher's attention, but the teacher is gone: {error}"
            ) from error
    try:
        pairing = Pairing(**config.pairing) if rules and config.pairing else None
        transfer = AttentionTransfer(teacher, student, rules, pairing=pairing)
        if transfer.head_pairs is not None:
            transfer.head_pairs.load_state_dict({"pairs": torch.tensor(summary["head_pairs"])})
    except (TypeError, KeyError, RuntimeError) as error:  # of someone else's files
        raise UserError(f"the settings in {path} do not fit its student ({error}); restore the run") from error
    if transfer.head_pairs is not None:
        # Asked once here, because tracing the network later can't read values.
        transfer.head_pairs.missing(range(len(transfer.head_pairs.pairs)))
    spec = describe(student)
    return LoadedRun(Classifier(transfer).eval(), spec, _names(student, spec), summary, path)


def teacher_of(folder: RunFolder, config: TrainedConfig) -> nn.Module:
    """The teacher that was saved with the run, or else the one that its configuration names, repaired as it was there.

    Raises:
        UserError: it is gone, or the record of its repair is.
    """
    neurons = TeacherRepair.of_run(folder.path).neurons if config.repair else None
    own = folder.path / "teacher"
    if own.is_dir():
        return load_vit(str(own), repair=neurons)
    return load_vit(str(config.teacher), pretrained=config.pretrained, image_size=config.image_size, repair=neurons)
