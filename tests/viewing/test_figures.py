"""Figures show what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attention_transfer.viewing import Point, accuracy_chart, learning_curves, save


def test_accuracies_are_drawn_at_their_mean_with_their_interval() -> None:
    figure: Any = accuracy_chart({"5 labels a class": {"copy": Point(0.7, 0.6, 0.8, (0.65, 0.75))}})
    (axis,) = figure.axes
    seeds, mean = axis.lines[0], axis.containers[0].lines[0]
    assert list(seeds.get_ydata()) == [0.65, 0.75]
    assert list(mean.get_ydata()) == [0.7]
    (bar,) = axis.containers[0].lines[2]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([0.6, 0.8])


def test_curves_run_over_epochs() -> None:
    points = [(1.0, Point(0.2, 0.1, 0.3)), (2.0, Point(0.4, 0.3, 0.5))]
    figure: Any = learning_curves({"5 labels a class": {"copy": points}})
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[1.0, 0.2], [2.0, 0.4]]


def test_a_figure_is_written_as_a_picture(tmp_path: Path) -> None:
    path = save(learning_curves({"a": {"copy": [(1.0, Point(0.2, 0.2, 0.2))]}}), tmp_path / "new" / "curve.png")
    assert Image.open(path).width > 100
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]
