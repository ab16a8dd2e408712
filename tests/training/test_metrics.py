"""Scores of a validation: accuracy and calibration against a count in a plain loop, whatever the batches are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.engine.metrics import Scores


def counted(logits: Tensor, targets: Tensor, bins: int = 15) -> tuple[float, float]:
    """Accuracy and expected calibration error, image by image; a bin has its upper bound and not its lower one."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(logits, targets, strict=True):
        confidence = float(row.softmax(dim=-1).max())
        place = next(b for b in range(bins) if confidence <= (b + 1) / bins + 1e-9)
        found.setdefault(place, []).append((confidence, int(row.argmax()) == int(target)))
    gaps = (abs(sum(right for _, right in each) - sum(c for c, _ in each)) for each in found.values())
    right = sum(right for each in found.values() for _, right in each)
    return right / len(targets), sum(gaps) / len(targets)


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("sharp", [0.1, 1.0, 8.0, 1000.0])  # up to confidences of exactly 1
def test_accuracy_and_calibration_are_those_of_a_count(batch: int, sharp: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = sharp * torch.randn(100, 5, generator=generator)
    targets = torch.randint(5, (100,), generator=generator)
    scores = Scores(torch.device("cpu"), labelled=True)
    for part, own in zip(logits.split(batch), targets.split(batch), strict=True):
        scores.add({"loss": part.mean()}, part, own)
    accuracy, error = counted(logits, targets)
    found = scores.compute(1)
    assert list(found) == ["accuracy", "calibration_error", "cross_entropy", "loss"]
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-7)
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert found["cross_entropy"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert scores.compute(1) == found  # what is read is not changed


def test_without_classes_there_are_the_losses_alone() -> None:
    scores = Scores(torch.device("cpu"), labelled=False)
    scores.add({"loss": torch.tensor(2.0)}, None, torch.zeros(3))
    scores.add({"loss": torch.tensor(4.0)}, None, torch.zeros(1))
    assert scores.compute(1) == {"loss": 2.5}
