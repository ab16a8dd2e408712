"""The figures of a comparison: accuracies, learning curves, and where each network looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.data import Splits
from attention_transfer.evaluation import load_run, seen
from attention_transfer.experiments.results import Row, by_labels, lines
from attention_transfer.experiments.statistics import mean_interval
from attention_transfer.training import read_metrics
from attention_transfer.viewing import (
    Point,
    SheetRow,
    accuracy_chart,
    attention_sheet,
    learning_curves,
    save,
    save_sheet,
)
from attention_transfer.vit import capture, describe


def draw_accuracies(rows: Sequence[Row], path: Path) -> Path:
    """Test accuracy of each method, with intervals."""
    points = {
        title: {line.preset: Point(line.accuracy.mean, *_bounds(line.values), line.values) for line in lines(group)}
        for title, group in by_labels(rows).items()
    }
    return save(accuracy_chart(points), path)


def draw_curves(rows: Sequence[Row], path: Path) -> Path:
    """Validation accuracy over training; mean and range over seeds."""
    panels = {}
    for title, group in by_labels(rows).items():
        panels[title] = {
            preset: _curve([row for row in group if row.preset == preset])
            for preset in dict.fromkeys(row.preset for row in group)
        }
    return save(learning_curves(panels), path)


def draw_attention(runs: Sequence[Path], teacher: nn.Module, splits: Splits, folder: Path) -> list[Path]:
    """For the first test image of three classes: where each network looks in each layer.

    The pictures show how much attention each patch gets, averaged over heads and over the queries of all tokens.
    """
    loaded = {run.summary["preset"]: run for run in map(load_run, runs)}
    networks: dict[str, tuple[nn.Module, nn.Module]] = {
        name: (run.network, run.network.student) for name, run in loaded.items()
    }
    networks = {**{k: v for k, v in networks.items() if k == "scratch"}, "teacher": (teacher, teacher), **networks}
    paths = []
    for label in _shown(splits):
        index = int(np.flatnonzero(splits.test.labels == label)[0])
        shown = splits.test.images[index]
        sheet = []
        for name, (network, vit) in networks.items():
            image, placement = seen(describe(vit), shown)
            output, maps_LRC = attended(network, vit, image)
            says = "" if name == "teacher" else f", says {splits.classes[int(output.argmax())]}"
            sheet.append(SheetRow(name + says, shown, placement, [*maps_LRC]))
        layers = max(len(row.patches) for row in sheet)
        slug = re.sub(r"[^\w.-]+", "-", splits.classes[label])
        columns = [f"layer {layer}" for layer in range(1, layers + 1)]
        paths.append(save_sheet(attention_sheet(sheet, columns), folder / f"attention-{slug}.png"))
    return paths


def _shown(splits: Splits) -> list[int]:
    """Three classes of the test split: the fourth, sixth and ninth (digits of unlike shapes), or else the first."""
    there = np.unique(splits.test.labels).tolist()
    return [there[i] for i in (3, 5, 8)] if len(there) > 8 else there[:3]


@torch.no_grad()
def attended(network: nn.Module, vit: nn.Module, image: Tensor) -> tuple[Tensor, NDArray[np.float32]]:
    """The output for one image (1, channels, height, width), and what its patches get of `vit`'s attention.

    Returns:
        The network's output, and (layers, rows, columns): mean over heads and queries, float32.
    """
    spec = describe(vit)
    with capture(vit) as calls:
        output = network(image)
    received_LN = torch.stack([call.maps()[0].mean(dim=(0, 1)) for call in calls])
    patches_LN = received_LN[:, spec.tokens.patches(received_LN.shape[1])].float()
    return output, patches_LN.reshape(len(calls), *spec.grid).numpy()


def _curve(rows: Sequence[Row]) -> list[tuple[float, Point]]:
    by_epoch: dict[float, list[float]] = {}
    for row in rows:
        for metrics in read_metrics(Path(row.run) / "metrics.jsonl"):
            if "validation/accuracy" in metrics:
                by_epoch.setdefault(metrics["epoch"], []).append(metrics["validation/accuracy"])
    return [(epoch, Point(float(np.mean(v)), min(v), max(v))) for epoch, v in sorted(by_epoch.items())]


def _bounds(values: tuple[float, ...]) -> tuple[float, float]:
    interval = mean_interval(values)
    if np.isnan(interval.low):
        return interval.mean, interval.mean
    return interval.low, interval.high
