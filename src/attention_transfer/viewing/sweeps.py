"""The chart of a sweep: validation accuracy over the settings that were searched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, PercentFormatter

from attention_transfer.viewing.charts import Point
from attention_transfer.viewing.style import style

_SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def sweep_chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Point]]]], logarithmic: Collection[str]
) -> Figure:
    """Accuracy over values, a panel for each setting and a line for each amount of labels, with intervals.

    Args:
        panels: by setting and by amount of labels, the values in order, each with its accuracy in [0, 1].
        logarithmic: settings whose axis is.
    """
    mark = "o-" if len(panels) == 1 else "o"  # where other settings differ too, neighbours have no line between them
    with style():
        figure = Figure(figsize=(1.2 + 4.2 * len(panels), 3.6), layout="constrained")
        for axis, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for number, (title, points) in enumerate(lines.items()):
                means = [point.mean for _, point in points]
                errors = [
                    [point.mean - point.low for _, point in points],
                    [point.high - point.mean for _, point in points],
                ]
                shade = _SHADES[number % len(_SHADES)]
                values = [value for value, _ in points]
                axis.errorbar(
                    values, means, yerr=errors, fmt=mark, color=shade, capsize=3, markersize=4, linewidth=1, label=title
                )
            if name in logarithmic:
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
                axis.xaxis.set_minor_formatter(FuncFormatter(_of_few))
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_xlabel(name)
            axis.set_ylabel("validation accuracy")
            axis.legend(fontsize=8, frameon=False)
    return figure


def _of_few(value: float, place: int | None) -> str:  # noqa: ARG001 - as matplotlib calls it
    """Labels of a logarithmic axis between its powers of ten: 2 and 5 alone."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
