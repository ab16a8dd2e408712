"""What an optimiser step is: a global batch, however it is cut; its loss, its numbers, its gradients' norm."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer import AttentionTransfer, UserError
from attention_transfer.config.mixing import Mixing
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.memory import checkpointed_gradients
from attention_transfer.engine.optimiser import AveragedWeights
from attention_transfer.training import Objective, Recipe, ResolvedRecipe, Supervised
from attention_transfer.vit import library_of


class Double(nn.Module):
    """float64, in which sums in another order differ by no more than 1e-12 or so."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.double()


class Breaking(Objective):
    """An objective whose forward is replaced; `seen` are the sizes of its micro-batches in training."""

    def __init__(self, inner: Supervised) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[int] = []
        self.steps = 0

    @property
    def vit(self) -> nn.Module:
        return self.inner.vit

    def forward(self, pixels: Tensor, targets: Any) -> Any:
        if self.training:
            self.seen.append(len(pixels))
        return self.inner(pixels, targets)


class Greedy(Breaking):
    """Has memory for so many images, as a fake GPU."""

    def __init__(self, inner: Supervised, *, training: int, evaluation: int = 1000, after: int = 0) -> None:
        super().__init__(inner)
        self.most = {True: training, False: evaluation}
        self.after = after

    def forward(self, pixels: Tensor, targets: Any) -> Any:
        output = super().forward(pixels, targets)
        self.steps += self.training
        if self.steps > self.after and len(pixels) > self.most[self.training]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
        return output


class Poisoned(Breaking):
    """Gives a term that is not a number, at a step."""

    def forward(self, pixels: Tensor, targets: Any) -> Any:
        output = super().forward(pixels, targets)
        self.steps += self.training
        if self.training and self.steps == 8:  # of 3 steps an epoch
            task = output.losses["task"] * float("nan")
            return output._replace(loss=output.loss + task, losses={**output.losses, "task": task})
        return output


def close(first: list[dict[str, float]], second: list[dict[str, float]], tolerance: float) -> None:
    assert [set(row) for row in first] == [set(row) for row in second]
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("method", ["scratch", "copy", "distill", "gta"])
def test_micro_batches_make_the_same_steps(method: str, tiny: Any, tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 4):
        what = tiny.objective(method).double()
        recipe = replace(tiny.recipe, accumulate=accumulate, ema_decay=0.9)
        # 19 images: the last batch of an epoch has 3, which are cut into 2 and 1.
        fitted = tiny.fit(what, tmp_path / str(accumulate), recipe, number=19, prepare=Double())
        ends.append((tiny.history(tmp_path / str(accumulate)), fitted, tiny.weights(what)))
    (rows, fitted, kept), (rows_4, fitted_4, kept_4) = ends
    close(rows, rows_4, 1e-6)  # metrics are summed up in float32
    assert fitted.test == pytest.approx(fitted_4.test, rel=1e-6)
    for name, weight in kept.items():
        torch.testing.assert_close(weight, kept_4[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("transmix", ["off", "student"])
def test_a_batch_is_mixed_before_it_is_cut(transmix: Any, tiny: Any, tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 4):
        mixing = Mixing(mixup=0.8, cutmix=1.0, transmix=transmix)
        what = tiny.objective("distill", mixing=mixing).double()
        recipe = replace(tiny.recipe, accumulate=accumulate)
        tiny.fit(what, tmp_path / str(accumulate), recipe, number=19, prepare=Double())
        ends.append(tiny.weights(what))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-9)


def test_a_batch_is_cut_into_the_micro_batches_asked_for(tiny: Any, tmp_path: Path) -> None:
    what = Breaking(tiny.objective("scratch"))
    tiny.fit(what, tmp_path, replace(tiny.recipe, epochs=1, accumulate=2), number=19)
    assert what.seen == [4, 4, 4, 4, 3]


def test_what_was_loaded_in_evaluation_mode_is_trained_in_training_mode(tiny: Any, tmp_path: Path) -> None:
    what = tiny.objective("distill")
    assert not what.vit.training  # so are networks that `load_vit` gives
    modes: list[tuple[bool, bool]] = []
    what.vit.blocks[0].mlp.register_forward_hook(lambda module, *_: modes.append((module.training, what.training)))
    tiny.fit(what, tmp_path, replace(tiny.recipe, epochs=1))
    assert modes == [(True, True)] * 3 + [(False, False)] * 3  # steps; watch, validation and test
    assert not what.transfer.teacher.training


def test_the_average_is_made_where_the_weights_are(tiny: Any) -> None:
    average = AveragedWeights(tiny.objective("scratch").to("meta"), 0.5)
    with average.applied():
        average.update()
    assert {tensor.device.type for tensor in average._average} == {"meta"}


def test_the_logged_norm_is_that_of_all_gradients_before_clipping(tiny: Any, tmp_path: Path) -> None:
    data = tiny.images(8)
    what = tiny.objective("scratch")
    what.train()
    what(*data.tensors).loss.backward()
    norm = torch.cat([p.grad.flatten() for p in what.parameters() if p.grad is not None]).norm()
    recipe = ResolvedRecipe(epochs=1, batch_size=8, clip_grad=0.1, accumulate=2, label_smoothing=0.0)
    tiny.fit(tiny.objective("scratch"), tmp_path, recipe, number=8)
    assert tiny.history(tmp_path)[0]["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_terms(tiny: Any, tmp_path: Path) -> None:
    what = Poisoned(tiny.objective("distill"))
    message = r"not finite in epoch 3, step 8: task is nan, loss is nan, gradient norm is nan; the"
    with pytest.raises(UserError, match=message):
        tiny.fit(what, tmp_path)
    assert all(weight.isfinite().all() for weight in tiny.weights(what).values())
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_gradient_that_is_not_finite_stops_before_the_step_though_the_loss_is(tiny: Any, tmp_path: Path) -> None:
    class Steep(Breaking):
        def forward(self, pixels: Tensor, targets: Any) -> Any:
            output = super().forward(pixels, targets)
            self.steps += self.training
            cliff = (output.loss - output.loss.detach()).abs().sqrt()  # 0, and its gradient is not a number
            return output._replace(loss=output.loss + cliff) if self.training and self.steps == 3 else output

    what = Steep(tiny.objective("scratch"))
    with pytest.raises(UserError, match="not finite in epoch 1, step 3: gradient norm is nan; the checkpoints"):
        tiny.fit(what, tmp_path)
    assert all(weight.isfinite().all() for weight in tiny.weights(what).values())


@pytest.mark.parametrize("after", [0, 7])
def test_where_memory_runs_out_micro_batches_are_halved_and_the_steps_stay(
    after: int, tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    what = Greedy(tiny.objective("distill"), training=2, after=after)
    fitted = tiny.fit(what, tmp_path / "greedy")
    assert max(what.seen[-10:]) == 2
    assert "micro-batches of 2 images instead of 4, in steps of 8 as before" in caplog.text
    told = Breaking(tiny.objective("distill"))  # as the other: an objective whose attention is not watched
    expected = tiny.fit(told, tmp_path / "told", replace(tiny.recipe, accumulate=4))
    if after == 0:
        assert tiny.history(tmp_path / "greedy") == tiny.history(tmp_path / "told")
        assert fitted.test == expected.test
    else:  # the two epochs before had whole batches
        close(tiny.history(tmp_path / "greedy"), tiny.history(tmp_path / "told"), 1e-4)


def test_evaluation_that_runs_out_of_memory_takes_fewer_images_at_once(tiny: Any, tmp_path: Path) -> None:
    what = Greedy(tiny.objective("scratch"), training=8, evaluation=6)
    fitted = tiny.fit(what, tmp_path / "greedy")
    assert what.seen[-3:] == [8, 8, 4]
    expected = tiny.fit(tiny.objective("scratch"), tmp_path / "roomy")
    assert fitted.test == pytest.approx(expected.test, rel=1e-5)
    close(tiny.history(tmp_path / "greedy"), tiny.history(tmp_path / "roomy"), 1e-5)


def test_one_image_that_is_too_much_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one image is too much for the memory of this cpu"):
        tiny.fit(Greedy(tiny.objective("scratch"), training=0), tmp_path)


def test_other_errors_are_left_as_they_are(tiny: Any, tmp_path: Path) -> None:
    class Wrong(Breaking):
        def forward(self, pixels: Tensor, targets: Any) -> Any:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        tiny.fit(Wrong(tiny.objective("scratch")), tmp_path)


def test_bf16_runs_in_bf16_and_keeps_weights_in_float32(tiny: Any, tmp_path: Path) -> None:
    kinds = set()
    what = tiny.objective("distill")
    what.transfer.student.head.register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
    tiny.fit(what, tmp_path / "half", replace(tiny.recipe, precision="bf16", accumulate=2))
    assert kinds == {torch.bfloat16}
    assert {weight.dtype for weight in tiny.weights(what).values()} == {torch.float32}
    tiny.fit(tiny.objective("distill"), tmp_path / "full")
    close(tiny.history(tmp_path / "half"), tiny.history(tmp_path / "full"), 0.3)
    assert tiny.history(tmp_path / "half") != tiny.history(tmp_path / "full")


def test_fp16_on_the_cpu_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        tiny.fit(tiny.objective("scratch"), tmp_path, replace(tiny.recipe, precision="fp16"))


class Overflowing(Breaking):
    """Gives gradients that overflow float16, at a step."""

    def forward(self, pixels: Tensor, targets: Any) -> Any:
        output = super().forward(pixels, targets)
        self.steps += self.training
        cliff = (output.loss - output.loss.detach()) * (1e38 if self.training and self.steps == 5 else 0.0)
        return output._replace(loss=output.loss + cliff)


def test_fp16_scales_the_loss_skips_steps_that_overflow_and_is_resumed(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hardware, "problems", lambda *_: [])  # which refuses fp16 on the CPU, where it is slow
    recipe = replace(tiny.recipe, precision="fp16")
    what = Overflowing(tiny.objective("distill"))
    tiny.fit(what, tmp_path / "whole", recipe)
    assert {weight.dtype for weight in tiny.weights(what).values()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in tiny.weights(what).values())
    tiny.fit(Breaking(tiny.objective("distill")), tmp_path / "full")
    losses = [tiny.history(tmp_path / name)[0]["train/loss"] for name in ("whole", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    last = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    skipped = round(math.log2(2**16 / last["scaler"]["scale"]))  # each halves the scale
    assert skipped >= 1
    assert {int(state["step"]) for state in last["optimizer"]["state"].values()} == {9 - skipped}
    cut = Overflowing(tiny.objective("distill"))
    tiny.fit(cut, tmp_path / "cut", replace(recipe, epochs=2), test=None)
    tiny.fit(cut, tmp_path / "cut", recipe, test=None)
    resumed = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["scaler"] == last["scaler"]


def test_checkpointed_gradients_are_the_same_gradients(tiny: Any, tmp_path: Path) -> None:
    for name, on in (("plain", False), ("again", True)):
        what = tiny.objective("copy")
        calls: list[int] = []
        what.transfer.student.blocks[1].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
        )
        tiny.fit(what, tmp_path / name, replace(tiny.recipe, epochs=1, checkpoint_gradients=on), test=None)
        assert sum(calls) == (6 if on else 3)  # steps with gradient, twice where blocks run again
        assert not what.transfer.student.grad_checkpointing
    close(tiny.history(tmp_path / "again"), tiny.history(tmp_path / "plain"), 1e-6)


def test_a_network_that_can_not_run_blocks_again_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny.build(1)
    monkeypatch.setattr(type(library_of(vit)), "can_recompute", lambda *_: False)
    with (
        pytest.raises(UserError, match="VisionTransformer can't compute its blocks again"),
        checkpointed_gradients(vit, on=True),
    ):
        pass


def test_a_compiled_objective_learns_the_same_and_keeps_its_names(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    graphs: list[Any] = []
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    what = Supervised(AttentionTransfer(None, tiny.build(2, depth=1)))
    names = list(what.state_dict())
    tiny.fit(what, tmp_path / "compiled", replace(tiny.recipe, compile=True), number=16, test=None)
    assert len(graphs) == 2  # one for training and one for evaluation, whatever the step
    best = torch.load(tmp_path / "compiled" / "checkpoints" / "best.ckpt", weights_only=True)
    assert list(best["state_dict"]) == names
    what(*tiny.images(4).tensors)
    assert len(graphs) == 2  # the objective itself is not compiled
    tiny.fit(Supervised(AttentionTransfer(None, tiny.build(2, depth=1))), tmp_path / "plain", number=16, test=None)
    close(tiny.history(tmp_path / "compiled"), tiny.history(tmp_path / "plain"), 1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp8"}, "recipe.precision is 'fp8'"),
        ({"batch_size": 10, "accumulate": 4}, "recipe.batch_size 10 can't be cut into 4 equal micro-batches"),
        ({"accumulate": 0}, "recipe.accumulate is 0"),
        ({"early_stopping": 0}, "recipe.early_stopping is 0"),
        ({"workers": -1}, "recipe.workers is -1"),
    ],
)
def test_settings_that_can_not_be_are_named(wrong: dict[str, Any], message: str) -> None:
    (problem,) = Recipe(**wrong).problems()
    assert message in problem


def test_a_network_of_transformers_runs_its_blocks_again_too() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=8, patch_size=4
    )
    vit = transformers.ViTForImageClassification(config).train()
    calls: list[int] = []
    block = next(module for name, module in vit.named_modules() if name.endswith("1.attention"))
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = torch.randn(2, 3, 8, 8)
    with checkpointed_gradients(vit, on=True):
        vit(pixels).logits.sum().backward()
    again = len(calls)
    vit(pixels).logits.sum().backward()
    assert (again, len(calls) - again) == (2, 1)
