"""What README and examples show is run, without the network: random weights take the place of published ones."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import timm

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _small_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> Any:
        return create(name.partition(".")[0], depth=2, embed_dim=48, num_heads=2, **settings)

    monkeypatch.setattr(timm, "create_model", offline)


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"<!-- tested -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["student"].blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert names["maps"].shape == (2, 2, 197, 197)


def test_the_bare_loop_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bare_loop.py"])
    runpy.run_path(str(ROOT / "examples" / "bare_loop.py"), run_name="__main__")
    assert capsys.readouterr().out.count("loss") == 3


def test_the_loop_of_two_hugging_face_models_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["hugging_face_loop.py"])
    runpy.run_path(str(ROOT / "examples" / "hugging_face_loop.py"), run_name="__main__")
    assert capsys.readouterr().out.count("loss") == 3
