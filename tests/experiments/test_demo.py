"""The verb `demo`, in its quick form: everything runs and is where it says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from attention_transfer import PRESETS, UserError, demo, predict
from attention_transfer.config.training import Compare
from attention_transfer.experiments.compare import Comparison


@pytest.mark.slow
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


def test_the_demo_is_of_photographs_with_as_many_steps_for_each_amount_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Compare] = []

    def noted(config: Compare) -> Comparison:
        asked.append(config)
        return Comparison(Path(config.out), str(config.teacher), ())

    module = import_module("attention_transfer.experiments.demo")
    monkeypatch.setattr(module, "compare_methods", noted)
    monkeypatch.setattr(module, "_show", lambda *_, **__: None)
    demo(out=str(tmp_path / "demo"))
    demo(full=True, out=str(tmp_path / "demo"))
    assert [(config.shots, config.seeds) for config in asked] == [
        ("20", "0,1,2"),
        ("5", "0,1,2,3,4,5"),
        ("20", "0,1,2,3,4,5"),
    ]
    assert {(config.data, config.teacher) for config in asked} == {("digit-scenes", "builtin/vit_characters")}
    images = [10 * int(str(config.shots)) * (config.epochs or 0) for config in asked]
    assert [config.recipe and config.recipe.batch_size for config in asked] == [50, 50, 50]
    assert [seen // 50 for seen in images] == [64, 200, 200]


def test_quick_and_full_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        demo(quick=True, full=True, out=str(tmp_path / "demo"))
    assert list(tmp_path.iterdir()) == []
