from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from attention_transfer import bench
from attention_transfer.errors import UserError
from attention_transfer.experiments.steps import METHODS, Bench, step_of, teacher_of

TINY = "builtin/vit_digits"


def test_every_method_is_measured_against_the_floor_and_written(tmp_path: Path) -> None:
    costs = bench(TINY, methods="copy,gta", image_sizes="8", batch_size=2, repeats=2, out=str(tmp_path / "out"))
    assert [cost.method for cost in costs] == ["floor", "copy", "gta"]
    assert costs[0].memory_ratio == 1.0  # the floor beside itself: the same tensors, but not the same moment
    assert all(cost.memory > 0 and cost.seconds > 0 for cost in costs)
    assert all(cost.tokens == 17 and cost.low <= cost.ratio <= cost.high for cost in costs)
    report = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert report["versions"]["torch"] == torch.__version__
    assert [cost["method"] for cost in report["costs"]] == ["floor", "copy", "gta"]
    assert Image.open(tmp_path / "out" / "bench.png").size[0] > 300
    with pytest.raises(UserError, match=r"bench\.json exists; choose another folder with --out, or replace it"):
        bench(TINY, out=str(tmp_path / "out"))
    (tmp_path / "out" / "bench.json").write_text('{"someone": "else"}')
    with pytest.raises(UserError, match=r"bench\.json was not written by this verb"):
        bench(TINY, out=str(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_each_method_runs_and_leaves_no_gradient(method: str) -> None:
    setting = Bench(TINY, 8, 2, "cpu", "float32", compiled=False)
    teacher = teacher_of(setting)
    step = step_of(method, teacher, setting)
    step()
    step()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": "floor,distil"}, "no method 'distil' to measure; did you mean 'distill'"),
        ({"image_sizes": "8,x"}, "give whole numbers"),
        ({"image_sizes": ""}, "at least one number"),
        ({"dtype": "int8"}, "choose float32, bfloat16 or float16"),
        ({"repeats": 0}, "at least 1"),
        ({"model": "timm/vit_tinny_patch16_224"}, "did you mean"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        bench(**{"model": TINY, "out": str(out), **settings})  # type: ignore[arg-type]
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        bench(TINY, device="cuda")
