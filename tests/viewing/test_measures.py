"""Heat maps and reliability diagrams show what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_transfer.viewing import Bin, HeatMap, heat_maps, reliability_diagram


def test_a_heat_map_begins_in_the_lower_left_and_has_its_numbers() -> None:
    panel = HeatMap("CKA", [[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], 1.0)
    figure: Any = heat_maps([panel, panel], rows=[0, 1, 2], columns=[4, 5], ylabel="block of A", xlabel="block of B")
    first = figure.axes[0]
    assert first.images[0].get_array().tolist() == [list(row) for row in panel.values]
    assert first.get_ylim() == (-0.5, 2.5)
    assert [label.get_text() for label in first.get_xticklabels()] == ["4", "5"]
    assert {(t.get_position(), t.get_text()) for t in first.texts} >= {((0, 0), "0.90"), ((1, 2), "0.40")}


def test_a_large_heat_map_has_no_numbers() -> None:
    figure: Any = heat_maps(
        [HeatMap("JS", np.zeros((13, 2)).tolist(), 0.7)], rows=range(13), columns=range(2), ylabel="A", xlabel="B"
    )
    assert not figure.axes[0].texts


def test_a_reliability_diagram_has_bars_of_accuracy_and_of_the_gap() -> None:
    bins = [Bin(0.0, 0.5, 0.25, 0.4, 0.1), Bin(0.5, 1.0, 0.75, 0.7, 0.9)]
    figure: Any = reliability_diagram({"one": bins, "two": bins})
    above, _, below, _ = figure.axes
    accuracy, gap = above.containers
    assert [bar.get_height() for bar in accuracy] == [0.1, 0.9]
    assert [bar.get_y() + bar.get_height() for bar in gap] == pytest.approx([0.4, 0.7])
    assert [bar.get_height() for bar in below.containers[0]] == [0.25, 0.75]
