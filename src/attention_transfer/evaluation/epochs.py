"""The epochs of a run whose weights are still there, and how it went over all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from attention_transfer.engine.checkpoints import kept_checkpoints, validated_weights
from attention_transfer.errors import UserError
from attention_transfer.training import RunFolder, TrainedConfig, read_metrics

log = logging.getLogger("attention_transfer")

_STUDENT = "transfer.student."


@dataclass(frozen=True)
class Curves:
    """A run over its validated epochs.

    Attributes:
        epochs: counted from 1.
        accuracy: on the validation split; `None` where it was not measured.
        drift: 1 - agreement of the last layer's attention with the teacher's, in [0, 1]; `None` without a teacher.
    """

    epochs: tuple[int, ...]
    accuracy: tuple[float, ...] | None
    drift: tuple[float, ...] | None


@dataclass(frozen=True)
class KeptEpochs:
    """The checkpoints of a run.

    Attributes:
        files: by epoch; empty for a model that is no run, or where fewer than two are left to look at.
        curves: of the run; `None` for a model that is no run.
    """

    files: Mapping[int, Path] = field(default_factory=dict)
    curves: Curves | None = None

    @classmethod
    def of(cls, name: str) -> KeptEpochs:
        """What a run of `train` keeps: its best and its last epoch, or all. Nothing for other models."""
        folder = RunFolder(Path(name).expanduser())
        if not folder.has("config.yaml") or not isinstance(folder.config(), TrainedConfig):
            return cls()
        files: dict[int, Path] = {}
        for path in kept_checkpoints(folder.path):
            try:
                files[validated_weights(path)[0]] = path
            except UserError as error:
                log.info("%s; its epoch can't be shown", error)
        return cls(dict(sorted(files.items())) if len(files) > 1 else {}, _curves(folder))

    @classmethod
    def required(cls, name: str) -> KeptEpochs:
        """As `of`, where there is something to compare.

        Raises:
            UserError: fewer than two epochs are kept.
        """
        kept = cls.of(name)
        if not kept.files:
            raise UserError(
                f"{name} keeps the weights of fewer than two epochs; name a run that was trained with "
                "--recipe.keep-epochs true"
            )
        return kept

    def fitting(self, vit: nn.Module, name: str) -> KeptEpochs:
        """These, if the weights fit a network of this shape; else the curves alone, which is logged.

        Args:
            vit: the run's student, perhaps at another image size.
            name: of the run, for the log.
        """
        own = {key: value.shape for key, value in vit.state_dict().items()}
        if self.files and own != {key: value.shape for key, value in self.weights(next(iter(self.files))).items()}:
            log.info("%s: its epochs can't be shown at another image_size; leave it out to see them", name)
            return KeptEpochs(curves=self.curves)
        return self

    def weights(self, epoch: int) -> dict[str, Tensor]:
        """The student's weights after an epoch.

        Raises:
            UserError: they are not kept.
        """
        if epoch not in self.files:
            kept = ", ".join(map(str, self.files)) or "none"
            raise UserError(f"the weights of epoch {epoch} are not kept; there are: {kept}")
        state = validated_weights(self.files[epoch])[1]
        return {name.removeprefix(_STUDENT): x for name, x in state.items() if name.startswith(_STUDENT)}


def _curves(folder: RunFolder) -> Curves | None:
    rows = [row for row in read_metrics(folder.path / "metrics.jsonl") if "validation/loss" in row]
    if not rows:
        return None

    def curve(name: str) -> tuple[float, ...] | None:
        return tuple(row[name] for row in rows) if all(name in row for row in rows) else None

    layers = [int(name.rpartition("_")[2]) for name in rows[0] if name.startswith("agreement/layer_")]
    agreement = curve(f"agreement/layer_{max(layers)}") if layers else None
    drift = None if agreement is None else tuple(round(1 - value, 6) for value in agreement)
    return Curves(tuple(int(row["epoch"]) for row in rows), curve("validation/accuracy"), drift)
