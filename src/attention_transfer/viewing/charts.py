"""Charts of results: accuracies with intervals, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from attention_transfer.viewing.style import colour, style


@dataclass(frozen=True)
class Point:
    """A mean over seeds with its interval, and the values it is the mean of; all shares in [0, 1]."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...] = ()


def accuracy_chart(points: Mapping[str, Mapping[str, Point]], *, ylabel: str = "test accuracy") -> Figure:
    """Accuracy of each method, one panel for each amount of labels: mean, interval, and each seed as a small dot."""
    with style():
        width = max(3.4, 0.85 * max(map(len, points.values())))
        figure = Figure(figsize=(1.2 + width * len(points), 3.4), layout="constrained")
        for axis, (title, methods) in zip(
            figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True
        ):
            for place, (method, point) in enumerate(methods.items()):
                shade = colour(method)
                axis.plot([place] * len(point.values), point.values, "o", color=shade, alpha=0.35, markersize=4)
                axis.errorbar(
                    place + 0.18,
                    point.mean,
                    yerr=[[point.mean - point.low], [point.high - point.mean]],
                    fmt="D",
                    color=shade,
                    capsize=4,
                    markersize=6,
                )
                axis.annotate(
                    f"{100 * point.mean:.1f}", (place + 0.3, point.mean), fontsize=8, va="center", color=shade
                )
            axis.set_xticks(range(len(methods)), list(methods))
            axis.set_xlim(-0.5, len(methods) - 0.2)
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_title(title, fontsize=10)
            axis.set_ylabel(ylabel)
    return figure


def learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, Point]]]],
    *,
    ylabel: str = "validation accuracy",
    percent: bool = True,
) -> Figure:
    """A value over epochs, one panel for each amount of labels: each method's mean over seeds, and their range."""
    with style():
        figure = Figure(figsize=(1.2 + 4.2 * len(curves), 3.4), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axis, (title, methods) in zip(panels, curves.items(), strict=True):
            for method, points in methods.items():
                epochs = [epoch for epoch, _ in points]
                axis.plot(epochs, [p.mean for _, p in points], color=colour(method), label=method)
                lows, highs = [p.low for _, p in points], [p.high for _, p in points]
                axis.fill_between(epochs, lows, highs, color=colour(method), alpha=0.15, linewidth=0)
            if percent:
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("epoch")
            axis.set_ylabel(ylabel)
        panels[-1].legend(frameon=False, fontsize=8)
    return figure


def curve_chart(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, Point]]]], *, xlabel: str, ylabel: str = "test accuracy"
) -> Figure:
    """Accuracy of each method over a number, one panel for each title: means with intervals.

    Args:
        curves: for each panel and method (number, accuracy), by rising number; positive ones have a logarithmic axis.
        xlabel: what the number is.
        ylabel: what the accuracy is of.
    """
    with style():
        figure = Figure(figsize=(1.2 + 4.2 * len(curves), 3.4), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axis, (title, methods) in zip(panels, curves.items(), strict=True):
            numbers = sorted({number for points in methods.values() for number, _ in points})
            for method, points in methods.items():
                means = [point.mean for _, point in points]
                ends = [[p.mean - p.low for _, p in points], [p.high - p.mean for _, p in points]]
                shade = colour(method)
                axis.errorbar([n for n, _ in points], means, yerr=ends, fmt="o-", color=shade, capsize=3, label=method)
            if numbers[0] > 0:
                axis.set_xscale("log")
            axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(xlabel)
            axis.set_ylabel(ylabel)
        panels[-1].legend(frameon=False, fontsize=8)
    return figure


def cost_chart(costs: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Time and memory of each method against the floor, over tokens.

    Args:
        costs: for each method (tokens, time against the floor, memory against the floor), by rising tokens.
    """
    with style():
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        for axis, what, index in zip(panels, ("time", "peak memory"), (1, 2), strict=True):
            for method, points in costs.items():
                values = [point[index] for point in points]
                dashes = "--" if method == "floor" else "-"
                shade = "#000000" if method == "floor" else colour(method)
                axis.plot([p[0] for p in points], values, dashes, marker="o", markersize=4, color=shade, label=method)
            axis.set_xscale("log")
            ticks = sorted({point[0] for points in costs.values() for point in points})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.minorticks_off()
            axis.set_ylim(bottom=0)
            axis.set_xlabel("tokens")
            axis.set_ylabel(f"{what} of a step, floor = 1")
        panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
