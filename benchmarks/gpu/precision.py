"""Stage e: do all precisions train alike, and does a training survive what happens on a card?

The digits, distilled in float32, with TF32, in bfloat16 and in float16 with its scaled loss. Then memory that is short
for real, so that a training must go on with smaller micro-batches; a training that is killed and resumed, against one
that was not; and a step of two processes on the one card, against one process with both their batches.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from attention_transfer import AttentionTransfer, Distill, load_vit, student_like, train
from attention_transfer.errors import UserError
from attention_transfer.training import Recipe
from benchmarks.gpu.card import Card
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.right import difference
from benchmarks.gpu.stand_in import tiny_vit

PRECISIONS: dict[str, tuple[Any, Any]] = {
    "float32": ("fp32", "highest"),
    "TF32": ("fp32", "high"),
    "bfloat16": ("bf16", "highest"),
    "float16": ("fp16", "highest"),
}
DIGITS, BASE = "builtin/vit_digits", "timm/vit_base_patch16_224"


def run(card: Card, report: Report) -> None:
    """All rows."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        exact: list[float] = []
        for name in PRECISIONS:
            report.row({"case": f"train in {name}"}, partial(_precision, card, name, place, exact))
        report.row({"case": "out of memory"}, partial(_short_of_memory, card, place / "short"))
        report.row({"case": "two processes (gloo)"}, partial(_two_processes, card, "gloo"))
        report.row({"case": "killed and resumed"}, partial(_resumed, card, place))
        if not card.rehearsed:
            report.row({"case": "two processes (NCCL)"}, partial(_two_processes, card, "nccl"))


def _digits(device: Any, out: Path, *, rehearsed: bool, **recipe: Any) -> dict[str, Any]:
    """Distil the digits; the run's summary."""
    epochs, shots = (4, 2) if rehearsed else (40, 15)
    settings = {"epochs": epochs, "batch_size": 10, "validate_every": 2, "workers": 0} | recipe
    return train(
        "distill",
        teacher=tiny_vit() if rehearsed else DIGITS,
        pretrained=False,
        shots=shots,
        recipe=Recipe(**settings),
        device=device,
        loggers=[],
        out=str(out),
    ).summary


def _precision(card: Card, name: str, place: Path, exact: list[float]) -> Row:
    precision, products = PRECISIONS[name]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        summary = _digits(card.device, place / name, rehearsed=card.rehearsed, precision=precision)
    finally:
        torch.set_float32_matmul_precision(before)
    loss, accuracy = summary["test"]["loss"], summary["test"]["accuracy"]
    exact.append(loss)
    away = abs(loss / exact[0] - 1)
    return {"test_loss": loss, "test_accuracy": accuracy, "from_float32": away, "ok": away <= 0.1}


def _short_of_memory(card: Card, out: Path) -> Row:
    """A batch for which there is no memory; the log must say into what it was cut, and the run must end."""
    model, size, batch, shots = (tiny_vit(), 8, 16, 2) if card.rehearsed else (BASE, 224, 256, 52)
    with card.squeezed(leave=6 << 30, most_images=8):
        summary = train(
            "finetune",
            teacher=model,
            pretrained=False,
            image_size=size,
            shots=shots,
            recipe=Recipe(epochs=1, batch_size=batch, precision="bf16", workers=0),
            device=card.device,
            loggers=[],
            out=str(out),
        ).summary
    said = [line for line in (out / "log.txt").read_text().splitlines() if "out of memory" in line]
    cuts = [line.partition("going on with ")[2] or line.partition("; ")[2] for line in said]
    return {"said": cuts, "steps": summary["train"]["steps"], "ok": bool(said)}


def _resumed(card: Card, place: Path) -> Row:
    """Killed after its first checkpoint and started again: the metrics of every epoch, and of the test."""
    ends = []
    for name, kills in (("whole", 0), ("cut", 1)):
        out = place / name
        for attempt in range(kills + 1):
            _child(card, out, kill=attempt < kills)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        values = [value for row in rows for key, value in sorted(row.items()) if not key.startswith("time/")]
        ends.append(torch.tensor([*values, *json.loads((out / "summary.json").read_text())["test"].values()]))
    resumed = "resumed after step" in (place / "cut" / "log.txt").read_text()
    away = difference(ends[1], ends[0]) if ends[0].shape == ends[1].shape else float("nan")
    return {"resumed": resumed, "error": away, "ok": resumed and away <= (0 if card.rehearsed else 1e-3)}


def _child(card: Card, out: Path, *, kill: bool) -> None:
    settings = {"rehearsed": card.rehearsed, "epochs": 8}
    context: Any = multiprocessing.get_context(card.processes)
    process = context.Process(target=_digits, args=(card.device, out), kwargs=settings)
    process.start()
    checkpoint = out / "checkpoints" / "last.ckpt"
    while kill and process.is_alive() and not checkpoint.exists():
        time.sleep(0.001)
    if kill and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if not kill and process.exitcode != 0:
        raise UserError(f"the training in a process of its own ended with {process.exitcode}; its error is above")


def _two_processes(card: Card, backend: str) -> Row:
    """Gradients of a step by two processes, against those of one process with both batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = multiprocessing.get_context(card.processes)
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, port, backend, card.device, results), daemon=True) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = results.get(timeout=100)
    for process in processes:
        process.join()
    if isinstance(found, str):
        raise UserError(f"refused: {found}")
    error = difference(torch.tensor(found), _gradients(_network(card.device), *_images(card.device, slice(None))))
    return {"error": error, "limit": 1e-4, "ok": error <= 1e-4}


def _rank(rank: int, port: int, backend: str, device: str, results: Any) -> None:
    try:
        place, patience = f"tcp://127.0.0.1:{port}", timedelta(seconds=60)
        distributed.init_process_group(backend, init_method=place, rank=rank, world_size=2, timeout=patience)
        network = DistributedDataParallel(_network(device), find_unused_parameters=True)
        gradients = _gradients(network, *_images(device, slice(2 * rank, 2 * rank + 2)))
        if rank == 0:
            results.put(gradients.tolist())
        distributed.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - the parent says it
        if rank == 0:
            results.put(str(error).splitlines()[0])


class _Loss(nn.Module):
    """Task and rules as one loss, for DDP's hooks."""

    def __init__(self, transfer: AttentionTransfer) -> None:
        super().__init__()
        self.transfer = transfer

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        output = self.transfer(images)
        loss: torch.Tensor = output.total(F.cross_entropy(output.logits, targets))
        return loss


def _network(device: str) -> nn.Module:
    torch.manual_seed(0)
    teacher = load_vit(DIGITS, pretrained=False, num_classes=10)
    student = student_like(teacher, num_classes=10)
    return _Loss(AttentionTransfer(teacher, student, [Distill(impl="reference")]).train()).to(device)


def _images(device: str, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return images[part].to(device), torch.arange(4)[part].to(device)


def _gradients(network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    network(images, targets).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).cpu()
