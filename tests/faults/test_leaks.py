"""What is used again and again leaves nothing behind: no tensor, no hook, no open file."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer import AttentionTransfer, Copy, Distill, Guide, capture

LONG = float(os.environ.get("ATTENTION_TRANSFER_MINUTES", "0")) > 0
CAPTURES, TRANSFERS, STEPS = (2000, 200, 300) if LONG else (60, 12, 24)


def held(*models: nn.Module) -> dict[str, int]:
    """How much there is of what could be left behind."""
    gc.collect()
    modules = [module for model in models for module in model.modules()]
    files = Path("/dev/fd")
    return {
        "tensors": sum(
            count for kind, count in Counter(map(type, gc.get_objects())).items() if issubclass(kind, Tensor)
        ),
        "hooks": sum(
            len(value)
            for module in modules
            for name, value in vars(module).items()
            if name.endswith("_hooks") and isinstance(value, dict)
        ),
        "replaced forwards": sum("forward" in vars(module) for module in modules),
        "open files": len(list(files.iterdir())) if files.is_dir() else 0,
    }


def unchanged_by(what: Callable[[], object], times: int, *models: nn.Module) -> None:
    """Do something a few times, for what is kept on purpose, and then many times."""
    for _ in range(3):
        what()
    gc.collect()
    gc.freeze()  # what is there now is neither counted nor looked through again
    try:
        before = held(*models)
        for _ in range(times):
            what()
        more = {name: (count, before[name]) for name, count in held(*models).items() if count > before[name]}
    finally:
        gc.unfreeze()
    assert not more  # there may be less: other tests leave things that go meanwhile


def test_captures(tiny_vit: Callable[..., Any], images: Tensor) -> None:
    model = tiny_vit()

    def captured() -> None:
        with torch.no_grad(), capture(model) as calls:
            model(images)
        assert len(calls) == 3

    unchanged_by(captured, CAPTURES, model)
    assert held(model)["replaced forwards"] == 0


def test_captures_that_end_with_an_error(tiny_vit: Callable[..., Any], images: Tensor) -> None:
    model = tiny_vit()

    def failed_inside() -> None:
        with pytest.raises(AssertionError), capture(model):
            model(images[:, :, :5])

    unchanged_by(failed_inside, CAPTURES // 4, model)
    assert held(model)["replaced forwards"] == 0


RULES: dict[str, Callable[[], list[Any]]] = {
    "copy": lambda: [Copy()],
    "distill": lambda: [Distill()],
    "gta": lambda: [Guide(weight=1)],
}


@pytest.mark.parametrize("method", RULES)
def test_transfers_that_are_made_and_released(method: str, tiny_vit: Callable[..., Any], images: Tensor) -> None:
    teacher, student, labels = tiny_vit(1), tiny_vit(2), torch.arange(4)

    def transferred() -> None:
        transfer = AttentionTransfer(teacher, student, RULES[method]())
        output = transfer(images)
        output.total(nn.functional.cross_entropy(output.logits, labels)).backward()
        student.zero_grad(set_to_none=True)
        transfer.release()

    unchanged_by(transferred, TRANSFERS, teacher, student)
    assert held(teacher, student)["replaced forwards"] == 0


@pytest.mark.parametrize("method", RULES)
def test_steps(method: str, tiny_vit: Callable[..., Any], images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), RULES[method]())
    optimizer, labels = torch.optim.AdamW(transfer.student.parameters()), torch.arange(4)

    def stepped() -> None:
        output = transfer(images)
        output.total(nn.functional.cross_entropy(output.logits, labels)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    unchanged_by(stepped, STEPS, transfer)
