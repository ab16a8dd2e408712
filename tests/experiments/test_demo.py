"""The verb `demo`, in its quick form: everything runs and is where it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_transfer import PRESETS, UserError, demo, predict


def test_the_quick_demo_leaves_a_page_and_students_that_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (comparison,) = demo(quick=True, out=str(tmp_path / "demo"))
    assert comparison.path == tmp_path / "demo-quick" / "5shot"
    assert [row.preset for row in comparison.rows] == list(PRESETS)[:5]  # those of the two papers
    assert {p.name for p in (comparison.path / "figures").iterdir()} == {
        "accuracy.png",
        "curves.png",
        "attention-3.png",
        "attention-5.png",
        "attention-8.png",
    }
    shown = capsys.readouterr().err
    assert str(comparison.path / "report.html") in shown
    for row in comparison.rows:
        assert row.preset in shown
        assert len(predict(row.run, [str(comparison.path / "figures" / "curves.png")], top=1)) == 1


def test_quick_and_full_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        demo(quick=True, full=True, out=str(tmp_path / "demo"))
    assert list(tmp_path.iterdir()) == []
