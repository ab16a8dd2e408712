from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from attention_transfer import AttentionTransfer, Distill, bench, load_vit, student_like
from attention_transfer.attention import Impl, choose_impl, triton_kernels
from attention_transfer.errors import UserError
from attention_transfer.experiments.bench import Cost, LeftOut, measure
from attention_transfer.experiments.steps import METHODS, ROUTES, Bench, _Materialised, step_of, teacher_of

TINY = "builtin/vit_digits"


@pytest.mark.usefixtures("warm_workers")
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


class Fake:
    """A method that takes no time, if it is not one that can't run."""

    def __init__(self, method: str, broken: dict[str, Exception]) -> None:
        if method in broken:
            raise broken[method]
        self.memory = 1

    def seconds(self) -> float:
        return 1.0

    def close(self) -> None:
        """Nothing to let go of."""


BROKEN = {
    "copy": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"),
    "gta": BrokenProcessPool("a process was terminated abruptly"),
    "distill": UserError("it can't serve"),
}


def test_a_method_that_can_not_be_measured_is_left_out_with_the_reason() -> None:
    setting = Bench(TINY, 8, 2, "cpu", "float32", compiled=False)
    names = ["floor", "copy", "gta", "distill", "finetune"]
    results = list(measure(setting, names, 2, make=lambda name, _: Fake(name, BROKEN)))
    assert [type(result) for result in results] == [Cost, LeftOut, LeftOut, LeftOut, Cost]
    assert [result.reason for result in results if isinstance(result, LeftOut)] == [
        "out of memory with batches of this size (CUDA out of memory. Tried to allocate 2.00 GiB.)",
        "the system ended its process, most likely for want of memory",
        "it can't serve",
    ]
    results = list(measure(setting, names, 2, make=lambda *_: Fake("copy", BROKEN)))
    assert all(isinstance(result, LeftOut) and result.reason.endswith("for the floor already") for result in results)
    with pytest.raises(RuntimeError, match="surprise"):
        list(measure(setting, ["copy"], 2, make=lambda name, _: Fake(name, {"copy": RuntimeError("surprise")})))


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.skipif(triton_kernels.available() is None, reason="the kernels can run here")
def test_the_verb_measures_the_others_and_says_which_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = bench(TINY, methods="distill-triton", image_sizes="8", batch_size=2, repeats=1, out=str(tmp_path / "out"))
    assert [cost.method for cost in costs] == ["floor"]
    left_out = json.loads((tmp_path / "out" / "bench.json").read_text())["left_out"]
    assert [(entry["method"], entry["tokens"]) for entry in left_out] == [("distill-triton", 17)]
    said = " ".join(capsys.readouterr().out.split())
    assert "distill-triton at 17 tokens is left out" in said and "can't compute" in said


def test_each_implementation_of_the_losses_is_a_method() -> None:
    assert set(ROUTES) == set(get_args(Impl)) - {"auto"}
    assert {f"distill-{route}" for route in ROUTES} < set(METHODS)


def test_materialised_maps_give_the_loss_and_the_gradients_of_distillation() -> None:
    teacher = load_vit(TINY, pretrained=False)
    student = student_like(teacher, num_classes=10)
    images, targets = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    found: list[dict[str, Any]] = []
    for rule in (_Materialised(), Distill(impl="reference")):
        student.zero_grad()
        transfer = AttentionTransfer(teacher, student, [rule]).train()
        output = transfer(images)
        output.total(F.cross_entropy(output.logits, targets)).backward()
        transfer.release()
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        found.append({"loss": output.total(torch.zeros(())).detach(), "logits": output.logits.detach(), **gradients})
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def runs(method: str) -> bool:
    """Whether a method is no implementation that this machine's CPU can't serve."""
    route: Any = method.removeprefix("distill-")
    q = torch.zeros(1, 1, 2, 16)
    try:
        return route not in ROUTES or bool(choose_impl("distilled_attention", q, q, v_s=q, impl=route))
    except UserError:
        return False


@pytest.mark.parametrize("method", [method for method in METHODS if runs(method)])
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
        ({"image_sizes": ""}, "image_sizes is empty"),
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
    with pytest.raises(UserError, match="device is cuda, but this machine has none"):
        bench(TINY, device="cuda")
