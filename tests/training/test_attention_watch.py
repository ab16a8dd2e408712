"""The agreement of attention and its picture, measured while a tiny network trains."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from attention_transfer import AttentionTransfer, Copy, Distill, LogitKD, Pairing, pretrain
from attention_transfer.training import Supervised, read_metrics
from attention_transfer.transfer import Rule

Maps = Callable[[nn.Module, Tensor], list[Tensor]]


def agreements(row: dict[str, float]) -> list[float]:
    """By layer, from the first."""
    return [row[name] for name in sorted(row) if name.startswith("agreement/")]


def without_agreement(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("agreement/")} for row in rows]


def supervised(tiny: Any, rules: Sequence[Rule], pairing: Pairing | None = None, **teacher: Any) -> Supervised:
    return Supervised(AttentionTransfer(tiny.build(1, **teacher), tiny.build(2), rules, pairing=pairing))


def taps(*models: nn.Module) -> list[Any]:
    """What is attached to the forwards of modules."""
    tapped = [module for model in models for module in model.modules() if "forward" in vars(module)]
    return [vars(module)["forward"].__self__.wrappers for module in tapped]


def looked_at(tiny: Any) -> Tensor:
    """Eight of the eleven validation images, evenly spaced."""
    images: Tensor = tiny.images(11, seed=1).tensors[0]
    return images[[0, 1, 3, 4, 6, 7, 9, 10]]


@pytest.mark.parametrize(("precision", "again"), [("fp32", False), ("bf16", True)])
def test_a_copied_student_agrees_wholly(precision: Any, again: bool, tiny: Any, tmp_path: Path) -> None:
    recipe = replace(tiny.recipe, precision=precision, checkpoint_gradients=again)
    tiny.fit(tiny.objective("copy"), tmp_path, recipe)
    assert [agreements(row) for row in tiny.history(tmp_path)] == [[1.0, 1.0, 1.0]] * 3


def test_it_is_the_jensen_shannon_divergence_of_the_validated_weights(
    tiny: Any, tmp_path: Path, unfused_maps: Maps
) -> None:
    objective = tiny.objective("distill")
    tiny.fit(objective, tmp_path, replace(tiny.recipe, epochs=1, lr=3e-2, ema_decay=0.9))
    objective.transfer.release()  # the averaged weights of the only epoch are in it
    assert objective.teacher is not None
    ours, theirs = (unfused_maps(network, looked_at(tiny)) for network in (objective.vit, objective.teacher))
    expected = [
        1 - float(np.mean(jensenshannon(a.double().numpy(), b.double().numpy(), axis=-1) ** 2)) / log(2)
        for a, b in zip(ours, theirs, strict=True)
    ]
    (row,) = tiny.history(tmp_path)
    assert agreements(row) == pytest.approx(expected, abs=2e-5)
    assert max(expected) < 0.99


def test_it_rises_with_distillation(tiny: Any, tmp_path: Path) -> None:
    recipe = replace(tiny.recipe, epochs=12, validate_every=6, lr=1e-2)
    last = {}
    for weight in (0.0, 3.0):  # a rule without weight: from scratch, with a teacher to be held against
        path = tmp_path / str(weight)
        tiny.fit(supervised(tiny, [Distill(weight=weight)]), path, recipe)
        last[weight] = agreements(tiny.history(path)[-1])
    assert all(taught > alone + 0.05 for taught, alone in zip(last[3.0], last[0.0], strict=True))


def test_it_is_measured_where_there_is_a_validation(tiny: Any, tmp_path: Path) -> None:
    tiny.fit(tiny.objective("distill"), tmp_path, replace(tiny.recipe, epochs=4, validate_every=2))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [len(agreements(row)) for row in rows] == [0, 3, 0, 3]
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["agreement/layer_3"] != "" for row in csv.DictReader(file)] == [False, True, False, True]


@pytest.mark.parametrize("method", ["distill", "copy"])
def test_the_training_is_bitwise_what_it_is_without(
    method: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny.recipe, drop_path=0.2, mixup=0.5)
    drawn = {}
    for name in ("with", "without"):
        torch.manual_seed(0)
        if name == "without":
            monkeypatch.setattr(Supervised, "watch", lambda *_, **__: None)
        tiny.fit(tiny.objective(method), tmp_path / name, recipe)
        drawn[name] = torch.rand(3)
    rows = {name: tiny.history(tmp_path / name) for name in drawn}
    assert rows["with"] != rows["without"]
    assert without_agreement(rows["with"]) == rows["without"]
    assert torch.equal(drawn["with"], drawn["without"])
    saved = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in drawn]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(value, saved[1]["state_dict"][name]) for name, value in saved[0]["state_dict"].items())


def test_nothing_stays_on_the_networks(tiny: Any, tmp_path: Path) -> None:
    objective = supervised(tiny, [Distill(layers=[0])])
    assert objective.teacher is not None
    before = taps(objective.vit, objective.teacher)
    tiny.fit(objective, tmp_path, replace(tiny.recipe, ema_decay=None))  # an average has taps of its own
    assert taps(objective.vit, objective.teacher) == before
    objective.transfer.release()
    assert taps(objective.vit, objective.teacher) == []


def test_a_compiled_training_is_not_compiled_anew(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    teacher, student = (tiny.build(seed, depth=2) for seed in (1, 2))
    objective, counter = Supervised(AttentionTransfer(teacher, student, [Distill()])).train(), CompileCounter()
    compiled = torch.compile(objective, backend=counter)
    watch = objective.watch(tiny.images(11), tmp_path / "attention.png", name="tiny", batch_size=4)
    images, labels = tiny.images(8).tensors
    with caplog.at_level(logging.DEBUG, logger="attention_transfer"):
        for _ in range(2):
            compiled(images, labels)
            assert len(watch(nn.Identity())) == 2
    assert counter.frame_count == 1
    assert "distill in layers" not in caplog.text  # that would be how this watch has computed the loss


def test_without_a_teacher_there_is_the_picture_alone(tiny: Any, tmp_path: Path) -> None:
    tiny.fit(tiny.objective("scratch"), tmp_path / "scratch")
    tiny.fit(tiny.objective("distill"), tmp_path / "distill")
    assert not any(agreements(row) for row in tiny.history(tmp_path / "scratch"))
    alone, both = (Image.open(tmp_path / name / "figures" / "attention.png") for name in ("scratch", "distill"))
    assert both.height > 1.8 * alone.height  # a row more for each of three images


def test_the_picture_is_of_the_last_validation(tiny: Any, tmp_path: Path) -> None:
    for epochs in (1, 2):
        recipe = replace(tiny.recipe, epochs=epochs, lr=1e-2, warmup=0.0)
        tiny.fit(tiny.objective("distill"), tmp_path / str(epochs), recipe)
        assert sorted(p.name for p in (tmp_path / str(epochs) / "figures").iterdir()) == ["attention.png", "curve.png"]
    first, second = ((tmp_path / name / "figures" / "attention.png").read_bytes() for name in "12")
    assert first != second


def test_pre_training_is_not_watched(tmp_path: Path) -> None:
    run = pretrain(epochs=1, out=str(tmp_path / "run"))
    assert not any(agreements(row) for row in read_metrics(run.path / "metrics.jsonl"))
    assert not (run.path / "figures" / "attention.png").exists()


def test_blocks_are_paired_as_the_rules_pair_them(tiny: Any, tmp_path: Path) -> None:
    """The teacher's first three blocks are those that are copied; by relative depth it would be others."""
    pairing = Pairing(layers=[0, 1, 2], heads="match")
    objective = supervised(tiny, [Copy(layers=[0, 2])], pairing, depth=5, num_heads=6)
    tiny.fit(objective, tmp_path, replace(tiny.recipe, epochs=1))
    (row,) = tiny.history(tmp_path)
    # No rule matched the heads of the second block, so that there is nothing to hold them against.
    assert {name: value for name, value in row.items() if name.startswith("agreement/")} == {
        "agreement/layer_1": 1.0,
        "agreement/layer_3": 1.0,
    }


def test_why_nothing_is_measured_is_said_once(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objective = supervised(tiny, [LogitKD()], num_heads=4)
    with caplog.at_level(logging.DEBUG, logger="attention_transfer"):
        tiny.fit(objective, tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if "no agreement" in record.getMessage()]
    assert "has heads 4 but the student has 3" in said
    assert not any(agreements(row) for row in tiny.history(tmp_path))
    assert (tmp_path / "figures" / "attention.png").is_file()


def test_without_a_class_token_it_is_the_mean_query(tiny: Any, tmp_path: Path) -> None:
    plain = {"class_token": False, "global_pool": "avg"}
    teacher, student = (tiny.build(seed, **plain) for seed in (1, 2))
    tiny.fit(Supervised(AttentionTransfer(teacher, student, [Copy()])), tmp_path, replace(tiny.recipe, epochs=1))
    assert agreements(tiny.history(tmp_path)[0]) == [1.0, 1.0, 1.0]
    assert (tmp_path / "figures" / "attention.png").is_file()


def test_of_many_layers_some_are_drawn(tiny: Any, tmp_path: Path) -> None:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 12, "num_heads": 3, "num_classes": 5}
    widths = []
    for depth in (7, 8, 13, 14):
        deep = timm.create_model("vit_tiny_patch16_224", depth=depth, **sizes)
        tiny.fit(Supervised(AttentionTransfer(None, deep)), tmp_path / str(depth), replace(tiny.recipe, epochs=1))
        widths.append(Image.open(tmp_path / str(depth) / "figures" / "attention.png").width)
    assert widths[0] < widths[1] == widths[2] == widths[3]
