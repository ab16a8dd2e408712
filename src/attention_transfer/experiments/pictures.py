"""The figures of a comparison: accuracies, learning curves, and where each network looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.data import Normalise, Splits, eval_pixels
from attention_transfer.evaluation import load_run
from attention_transfer.experiments.findings import label_curves, setting_curves
from attention_transfer.experiments.results import lines
from attention_transfer.experiments.rows import Row, by_labels
from attention_transfer.experiments.statistics import Interval, mean_interval
from attention_transfer.training import read_metrics
from attention_transfer.viewing import (
    Point,
    SheetRow,
    accuracy_chart,
    attention_sheet,
    curve_chart,
    learning_curves,
    save,
    save_sheet,
)
from attention_transfer.vit import capture, describe


def draw_accuracies(rows: Sequence[Row], path: Path) -> Path:
    """Test accuracy of each method, with intervals."""
    return save(accuracies(rows), path)


def accuracies(rows: Sequence[Row]) -> Figure:
    """The chart of test accuracies."""
    points = {
        title: {line.preset: _point(line.accuracy, line.values) for line in lines(group)}
        for title, group in by_labels(rows).items()
    }
    return accuracy_chart(points)


def draw_curves(rows: Sequence[Row], path: Path) -> Path:
    """Validation accuracy over training; mean and range over seeds."""
    return save(curves(rows), path)


def curves(rows: Sequence[Row]) -> Figure:
    """The chart of validation accuracies."""
    panels = {}
    for title, group in by_labels(rows).items():
        panels[title] = {
            preset: _curve([row for row in group if row.preset == preset])
            for preset in dict.fromkeys(row.preset for row in group)
        }
    return learning_curves(panels)


def over_labels(rows: Sequence[Row]) -> dict[str, Figure]:
    """Charts of accuracy over labels, by the unit of these, where there are several amounts."""
    units: dict[str, dict[str, dict[str, list[tuple[float, Point]]]]] = {}
    for (unit, others), methods in label_curves(rows).items():
        units.setdefault(unit.strip(), {})[others] = {
            name: [(number, _point(mean_interval([*runs.values()]))) for number, runs in sorted(curve.items())]
            for name, curve in methods.items()
        }
    return {unit: curve_chart(panels, xlabel=unit) for unit, panels in units.items()}


def over_settings(rows: Sequence[Row]) -> dict[str, Figure]:
    """Charts of accuracy over each setting that takes three or more numbers, by its name."""
    settings: dict[str, dict[str, dict[str, list[tuple[float, Point]]]]] = {}
    for found in setting_curves(rows):
        settings.setdefault(found.setting, {})[found.labels] = {
            name: [(number, _point(accuracy)) for number, accuracy in curve] for name, curve in found.methods.items()
        }
    return {setting: curve_chart(panels, xlabel=setting) for setting, panels in settings.items()}


def draw_attention(runs: Sequence[Path], teacher: nn.Module, splits: Splits, folder: Path) -> list[Path]:
    """For the first test image of three classes: where each network looks in each layer.

    The pictures show how much attention each patch gets, averaged over heads and over the queries of all tokens.
    """
    loaded = {run.summary["preset"]: run for run in map(load_run, runs)}
    networks: dict[str, tuple[nn.Module, nn.Module]] = {
        name: (run.network, run.network.student) for name, run in loaded.items()
    }
    networks = {**{k: v for k, v in networks.items() if k == "scratch"}, "teacher": (teacher, teacher), **networks}
    spec = describe(teacher)
    paths = []
    for label in _shown(splits):
        index = int(np.flatnonzero(splits.test.labels == label)[0])
        pixels_CHW = eval_pixels(spec)(splits.test.images[index])
        image = Normalise(spec)(pixels_CHW)[None]
        shown = np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).squeeze(-1).numpy())
        sheet = []
        for name, (network, vit) in networks.items():
            output, maps_LRC = attended(network, vit, image)
            says = "" if name == "teacher" else f", says {splits.classes[int(output.argmax())]}"
            sheet.append(SheetRow(name + says, shown, [*maps_LRC]))
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


def _point(interval: Interval, values: tuple[float, ...] = ()) -> Point:
    """A mean with its interval; the mean alone where there is none."""
    low, high = (interval.mean, interval.mean) if np.isnan(interval.low) else (interval.low, interval.high)
    return Point(interval.mean, low, high, values)
