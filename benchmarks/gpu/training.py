"""Stage d: images a second of whole trainings by `train`, and of the released code of Attention Transfer.

Distillation in bfloat16 on generated JPEGs of 500 pixels and on the digits, which are in memory and are enlarged on the
card; the second of two epochs counts. `data_wait` is the share of its time that was spent waiting for images. Where a
clone of the release is given, its own model is trained on images in memory as its engine does: float32, no autocast,
the loss read in every step; with the model, batch size and optimiser of the rows before. Last, the largest batch of a
step that fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from attention_transfer import train
from attention_transfer.errors import UserError
from attention_transfer.experiments.steps import ROUTES
from attention_transfer.training import Recipe
from attention_transfer.transfer import Distill
from benchmarks.folder_throughput import draw
from benchmarks.gpu.card import Card
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.steps import L_197, tiny

RELEASE = "26963e8ebccf2a2934f2d312f9b421bf2f66fe1d"
MODEL_FILE = ("models_dual_vit.py", "fcf9d0383f231347c985c75450c160d925432c26fe6851972e6a2176e5044a17")
BATCH = 64
LARGE, BASE = "timm/vit_large_patch16_224", "timm/vit_base_patch16_224"
FASTEST = next((route for route in ("triton", "flash") if route in ROUTES), "chunked")


def check_release(clone: Path) -> None:
    """Raise a `UserError` where a folder is no clone of the release, or of another commit.

    The file that is run decides, not git: a copy without its history serves, and a changed one does not.
    """
    name, digest = MODEL_FILE
    if not (clone / name).is_file():
        raise UserError(f"{clone} is no clone of github.com/alexlioralexli/attention-transfer (no {name})")
    if hashlib.sha256((clone / name).read_bytes()).hexdigest() != digest:
        raise UserError(f"{clone} is a clone of another commit; check out {RELEASE}, of which the figures are")


def run(card: Card, report: Report, *, release: Path | None) -> None:
    """Trainings in order of worth."""
    models = ("timm/test_vit",) if card.rehearsed else (LARGE, BASE)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for model in models:
            case = {"code": "this library", "model": model, "batch_size": _batch(card)}
            report.row(case | {"images": "digits, in memory"}, partial(_trained, card, model, "digits", place / "run"))
            if model == models[0] and release is not None:
                theirs = {"code": f"release {RELEASE[:7]}", "model": LARGE, "batch_size": _batch(card)}
                report.row(theirs | {"images": "in memory"}, partial(_released, card, release))
            if model == models[0]:  # not before: drawing takes its time
                drawn = _drawn(card, place / "drawn")
            report.row(case | {"images": "JPEGs"}, partial(_trained, card, model, str(drawn), place / "run"))
    for method in ("floor", f"distill-{FASTEST}", "materialised"):
        _largest(card, report, method)


def _batch(card: Card) -> int:
    return 4 if card.rehearsed else BATCH


def _trained(card: Card, model: str, data: str, out: Path) -> Row:
    route: Any = "auto" if card.rehearsed else FASTEST
    recipe = Recipe(epochs=2, batch_size=_batch(card), warmup=0.0, ema_decay=None, validate_every=2, precision="bf16")
    if card.rehearsed:
        recipe = replace(recipe, workers=0)
    train(
        "distill",
        teacher=model,
        pretrained=False,
        data=data,
        shots=1 if card.rehearsed else None,
        image_size=32 if card.rehearsed else 224,
        rules=[Distill(impl=route)],
        recipe=recipe,
        device=card.device,
        loggers=[],
        out=str(out),
    )
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    shutil.rmtree(out)  # checkpoints of a large network fill a small disk
    return {"images_per_second": last["time/images_per_second"], "data_wait": last["time/data_wait"], "impl": route}


def _drawn(card: Card, folder: Path) -> Path:
    """A folder of JPEGs: some drawn ones, each under several names, since drawing takes longer than training."""
    names, drawn = (2, 20) if card.rehearsed else (8, 512)
    draw(folder, drawn)
    for image in sorted((folder / "train").rglob("*.jpg")):
        for copy in range(1, names):
            os.link(image, image.with_name(f"{image.stem}-{copy}.jpg"))
    return folder


def _released(card: Card, clone: Path) -> Row:
    """Steps of the release's model, after two that don't count."""
    check_release(clone)
    sys.path.insert(0, str(clone))
    try:
        from models_dual_vit import dual_vit_base_patch16, dual_vit_large_patch16  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(clone))
    make = dual_vit_base_patch16 if card.rehearsed else dual_vit_large_patch16
    model = make(num_classes=10, global_pool=True).to(card.device).train()
    student = [p for name, p in model.named_parameters() if name.startswith("student.")]
    model.teacher.requires_grad_(False)
    optimiser = torch.optim.AdamW(student, lr=1e-3, weight_decay=0.05)
    size = _batch(card)
    images = torch.randn(size, 3, 224, 224, device=card.device)
    targets = torch.randint(10, (size,), device=card.device)

    def step() -> None:
        logits, distance = model(images)
        loss = F.cross_entropy(logits, targets) + 3.0 * distance
        loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    times = card.events(*[step] * (2 if card.rehearsed else 10))
    return {"images_per_second": 1e3 * size / statistics.median(times[1:]), "dtype": "float32"}


def _largest(card: Card, report: Report, method: str) -> None:
    """Steps with batches twice as large each time, until one does not fit."""
    setting = replace(tiny() if card.rehearsed else L_197, batch_size=_batch(card))
    while report.time_left() > 0 and setting.batch_size <= (8 if card.rehearsed else 2048):
        case = {"method": method, "model": setting.model, "batch_size": setting.batch_size}
        start = time.monotonic()
        report.row(case, partial(_stepped, card, method, setting))
        if "memory" not in report.content["rows"][-1] or time.monotonic() - start > 20:
            return
        setting = replace(setting, batch_size=2 * setting.batch_size)


def _stepped(card: Card, method: str, setting: Any) -> Row:
    with closing(card.runner(method, setting)) as runner:
        seconds = min(runner.seconds() for _ in range(3))
        return {"memory": runner.memory, "images_per_second": setting.batch_size / seconds}
