"""Mixup, CutMix and TransMix: what is mixed, how its labels are weighed, and by whose attention."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from attention_transfer.config.mixing import Mixing
from attention_transfer.errors import UserError, UserErrors
from attention_transfer.objectives import Supervised
from attention_transfer.objectives.mixing import (
    MixedBatch,
    MixedTargets,
    mix,
    mixed_cross_entropy,
    row_of_last_block,
    transmix_weight,
)
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide, LogitKD, Rule
from attention_transfer.vit import Pairing, Tokens, capture

Build = Callable[..., Any]


class MixedLoss:
    """Mixes a batch as the engine does, and runs an objective on it."""

    def __init__(self, transfer: AttentionTransfer, mixing: Mixing, *, label_smoothing: float = 0.0) -> None:
        self.objective = Supervised(transfer, mixing=mixing, label_smoothing=label_smoothing)
        self.objective.training = True  # labels are smoothed, and networks are as they were
        self.mixing = mixing

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Any, Tensor]:
        """What the objective gives, and the task's loss."""
        output = self.objective(*mix(images, targets, self.mixing))
        return output, output.losses["task"]


TARGETS = torch.tensor([0, 1, 2, 3])
ALWAYS_BOXED = Mixing(cutmix=1.0, transmix="student")
BY_TEACHER = Mixing(cutmix=1.0, transmix="teacher")


@pytest.mark.parametrize(
    "right",
    [
        Mixing(),
        Mixing(mixup=0.2),
        Mixing(cutmix=1.0, mix_probability=0.0),
        Mixing(mixup=0.8, cutmix=1.0, mix_probability=0.5, mix_switch=1.0, transmix="teacher"),
    ],
)
def test_right_settings_have_no_problem(right: Mixing) -> None:
    assert right.problems() == []


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mix_probability", "mix_switch"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 1e4])
def test_a_value_out_of_bounds_is_named(name: str, value: float) -> None:
    (problem,) = Mixing(**{name: value}).problems()  # type: ignore[arg-type]
    assert problem.startswith(f"{name} is {value}; give ")


def test_probabilities_are_at_most_one_and_all_problems_are_listed_at_once() -> None:
    assert Mixing(mixup=0.001, cutmix=2.0, mix_probability=1.1, mix_switch=1.5).problems() == [
        "mixup is 0.001; give 0, which is off, or a number from 0.01 to 1000",
        "mix_probability is 1.1; give a number of at least 0 and at most 1",
        "mix_switch is 1.5; give a number of at least 0 and at most 1",
    ]


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        (Mixing(transmix="student"), "transmix='student' weighs the labels of CutMix, which is off"),
        (Mixing(mixup=0.2, transmix="teacher"), "transmix='teacher' weighs the labels of CutMix, which is off"),
        (Mixing(mix_probability=0.5), "mix_probability has no effect"),
        (Mixing(mixup=0.2, mix_switch=0.1), "mix_switch has no effect"),
        (Mixing(transmix="pupil"), "transmix is 'pupil'"),  # type: ignore[arg-type]
    ],
)
def test_settings_without_effect_are_refused(idle: Mixing, message: str) -> None:
    (problem,) = idle.problems()
    assert problem.startswith(message)


def test_nothing_is_mixed_where_nothing_is_on_or_the_draw_says_so(images: Tensor) -> None:
    for mixing in (Mixing(), Mixing(cutmix=1.0, mix_probability=0.0)):
        mixed = mix(images, TARGETS, mixing)
        assert torch.equal(mixed.images, images)
        assert torch.equal(mixed.targets.first, mixed.targets.second)
        assert (mixed.targets.lam, mixed.targets.mask) == (1.0, None)


def test_mixup_blends_each_image_with_the_one_before(images: Tensor) -> None:
    before = images.clone()
    mixed = mix(images, TARGETS, Mixing(mixup=1.0))
    assert 0 < mixed.targets.lam < 1
    assert mixed.targets.mask is None
    assert mixed.targets.second.tolist() == [3, 0, 1, 2]
    torch.testing.assert_close(
        mixed.images, mixed.targets.lam * images + (1 - mixed.targets.lam) * images[[3, 0, 1, 2]]
    )
    assert torch.equal(images, before)


def test_cutmix_keeps_the_first_image_where_the_mask_is_true(images: Tensor) -> None:
    before, seen = images.clone(), 0
    for _ in range(20):
        mixed = mix(images, TARGETS, Mixing(cutmix=1.0))
        assert mixed.targets.mask is not None
        assert mixed.targets.lam == mixed.targets.mask.double().mean().item()
        others = images[[3, 0, 1, 2]]
        assert torch.equal(mixed.images[..., mixed.targets.mask], images[..., mixed.targets.mask])
        assert torch.equal(mixed.images[..., ~mixed.targets.mask], others[..., ~mixed.targets.mask])
        rows, columns = torch.nonzero(~mixed.targets.mask, as_tuple=True)
        if len(rows):
            seen += 1
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert len(rows) == area  # a whole box
    assert seen > 5
    assert torch.equal(images, before)


def test_probability_and_switch_are_shares_of_the_batches(images: Tensor) -> None:
    mixing = Mixing(mixup=1.0, cutmix=1.0, mix_probability=0.5, mix_switch=0.2)
    batches = [mix(images, TARGETS, mixing) for _ in range(2000)]
    changed = [mixed for mixed in batches if mixed.targets.second is not mixed.targets.first]
    boxed = [mixed for mixed in changed if mixed.targets.mask is not None]
    assert len(changed) / len(batches) == pytest.approx(0.5, abs=0.04)  # over 3 standard deviations
    assert len(boxed) / len(changed) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 1000.0])
def test_shares_follow_a_symmetric_beta_distribution(images: Tensor, alpha: float) -> None:
    shares = torch.tensor([mix(images[:1], TARGETS[:1], Mixing(mixup=alpha)).targets.lam for _ in range(2000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 2000))
    assert shares.var().item() == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=1.0, cutmix=1.0)])
def test_the_same_seed_mixes_in_the_same_way(images: Tensor, mixing: Mixing) -> None:
    def batches(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([mix(images, TARGETS, mixing).images for _ in range(4)])

    assert torch.equal(batches(3), batches(3))
    assert not torch.equal(batches(3), batches(4))


def test_odd_batches_single_images_and_flat_images_are_mixed_too() -> None:
    for shape in ((3, 3, 6, 10), (1, 1, 8, 8), (5, 1, 1, 7)):
        pictures = torch.randn(shape)
        for mixing in (Mixing(mixup=1.0), Mixing(cutmix=1.0)):
            assert mix(pictures, torch.arange(shape[0]), mixing).images.shape == shape


def test_the_weight_of_a_worked_example() -> None:
    # 2×2 patches of 2×2 pixels; the box is the lower right patch, so that 3/4 of the area is the first image's.
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2:, 2:] = False
    heads = torch.tensor([[[0.5, 0.1, 0.1, 0.1, 0.2], [0.2, 0.1, 0.1, 0.0, 0.6]]])  # mean of the patches: .1 .1 .05 .4
    weight = transmix_weight(heads, mask, tokens=Tokens(), grid=(2, 2))
    assert weight.tolist() == pytest.approx([(0.25 / 0.65 + 0.75) / 2])


def reference(
    rows: npt.NDArray[Any], mask: npt.NDArray[Any], prefix: int, suffix: int, grid: tuple[int, int]
) -> npt.NDArray[Any]:
    """The formula of the paper, a patch at a time in float64."""
    height, width = mask.shape
    weights = []
    for row in rows.astype(np.float64).mean(axis=1):
        patches = row[prefix : len(row) - suffix].reshape(grid)
        first = sum(
            patches[i, j]
            for i in range(grid[0])
            for j in range(grid[1])
            if mask[i * height // grid[0], j * width // grid[1]]
        )
        weights.append((first / patches.sum() + mask.mean()) / 2)
    return np.array(weights)


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [
        (Tokens(), (4, 4)),
        (Tokens(("class", "distillation")), (2, 4)),
        (Tokens(("class", *("register",) * 4)), (4, 2)),
        (Tokens(("class", "register"), suffix=3), (2, 8)),
    ],
)
def test_the_weight_equals_the_formula_in_float64(tokens: Tokens, grid: tuple[int, int]) -> None:
    total = len(tokens.prefix) + grid[0] * grid[1] + tokens.suffix
    for _ in range(10):
        rows = (2 * torch.randn(5, 3, total)).softmax(dim=-1)
        mask = mix(torch.zeros(1, 1, 16, 24), torch.zeros(1), Mixing(cutmix=1.0)).targets.mask
        assert mask is not None
        weight = transmix_weight(rows, mask, tokens=tokens, grid=grid)
        expected = reference(rows.numpy(), mask.numpy(), len(tokens.prefix), tokens.suffix, grid)
        np.testing.assert_allclose(weight.numpy(), expected, atol=1e-6)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """A mask of pixels with a box, a patch grid and a patch size."""
    grid = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    mask = torch.ones(grid[0] * size[0], grid[1] * size[1], dtype=torch.bool)
    top, left = draw(st.integers(0, mask.shape[0])), draw(st.integers(0, mask.shape[1]))
    mask[top : draw(st.integers(top, mask.shape[0])), left : draw(st.integers(left, mask.shape[1]))] = False
    return mask, grid, size


def random_rows(seed: int, total: int) -> Tensor:
    """Sharp and flat rows of 4 images and 2 heads, (4, 2, total)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 2, total, generator=generator) * torch.tensor([0.1, 1, 10, 100])[:, None, None]).softmax(-1)


@given(boxes(), st.integers(0, 1000))
@settings(deadline=None)
def test_weights_are_shares_and_those_of_the_two_images_add_up(
    box: tuple[Tensor, tuple[int, int], tuple[int, int]], seed: int
) -> None:
    mask, grid, _ = box
    rows = random_rows(seed, 1 + grid[0] * grid[1])
    first, second = (transmix_weight(rows, m, tokens=Tokens(), grid=grid) for m in (mask, ~mask))
    assert ((first >= 0) & (first <= 1)).all()
    torch.testing.assert_close(first + second, torch.ones(4))


@given(boxes())
@settings(deadline=None)
def test_uniform_attention_gives_the_area_on_the_patch_grid(
    box: tuple[Tensor, tuple[int, int], tuple[int, int]],
) -> None:
    mask, grid, size = box
    uniform = torch.full((1, 2, 1 + grid[0] * grid[1]), 0.3)
    on_grid = mask[:: size[0], :: size[1]].float().mean()
    expected = (on_grid + mask.float().mean()) / 2
    torch.testing.assert_close(transmix_weight(uniform, mask, tokens=Tokens(), grid=grid)[0], expected)


@given(boxes(), st.integers(0, 1000))
@settings(deadline=None)
def test_an_image_without_a_box_has_all_the_weight(
    box: tuple[Tensor, tuple[int, int], tuple[int, int]], seed: int
) -> None:
    mask, grid, _ = box
    rows = random_rows(seed, 1 + grid[0] * grid[1])
    assert transmix_weight(rows, torch.ones_like(mask), tokens=Tokens(), grid=grid).tolist() == [1.0] * 4
    assert transmix_weight(rows, torch.zeros_like(mask), tokens=Tokens(), grid=grid).tolist() == [0.0] * 4


def test_without_attention_to_any_patch_the_weight_is_the_area() -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:4, :2] = False
    rows = torch.zeros(2, 3, 6)
    rows[0, :, :2] = 0.5  # all of it goes to the class token and the register
    assert transmix_weight(rows, mask, tokens=Tokens(("class", "register")), grid=(2, 2)).tolist() == [0.875, 0.875]


def test_attention_to_another_number_of_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"2×2 patches, but there are 9"):
        transmix_weight(torch.ones(1, 1, 10), torch.ones(8, 8, dtype=torch.bool), tokens=Tokens(), grid=(2, 2))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_the_usual_one_where_nothing_is_mixed(images: Tensor, label_smoothing: float) -> None:
    logits = torch.randn(4, 5)
    mixed = mix(images, TARGETS, Mixing())
    loss = mixed_cross_entropy(logits, mixed.targets, mixed.targets.lam, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(logits, TARGETS, label_smoothing=label_smoothing))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [0.3, torch.tensor([0.0, 0.25, 0.7, 1.0])])
def test_the_loss_is_the_cross_entropy_with_soft_labels(weight: Tensor | float, label_smoothing: float) -> None:
    logits = torch.randn(4, 5)
    first, second = TARGETS, torch.tensor([4, 1, 0, 0])
    share = torch.as_tensor(weight).expand(4)[:, None]
    soft = share * F.one_hot(first, 5) + (1 - share) * F.one_hot(second, 5)
    mixed = MixedTargets(first, second, lam=0.5)
    loss = mixed_cross_entropy(logits, mixed, weight, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft, label_smoothing=label_smoothing))


def test_the_row_is_the_class_tokens_of_the_maps_in_float32(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    with torch.autocast("cpu", torch.bfloat16), capture(student, layers=[-1]) as calls:
        student(images)
        row = row_of_last_block(calls[0])
    assert row.dtype == torch.float32
    assert not row.requires_grad
    wide = calls[0].q.float() @ calls[0].k.float().transpose(-2, -1) * calls[0].scale
    torch.testing.assert_close(row, wide.softmax(dim=-1)[:, :, 0].detach())


def test_a_call_without_class_token_has_no_row(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2, class_token=False, global_pool="avg")
    with capture(student, layers=[-1]) as calls:
        student(images)
    with pytest.raises(UserError, match="TransMix needs a class token, which this network does not have"):
        row_of_last_block(calls[0])


def by_hand(maps: Tensor, logits: Tensor, mixed: MixedBatch) -> Tensor:
    """The task's loss from maps of the last block, (B, H, N, N), with one class token."""
    assert mixed.targets.mask is not None
    weight = transmix_weight(maps[:, :, 0], mixed.targets.mask, tokens=Tokens(), grid=(2, 2))
    return mixed_cross_entropy(logits, mixed.targets, weight, label_smoothing=0.1)


def boxed(images: Tensor, mixing: Mixing) -> MixedBatch:
    """What the next batch will be: some patches of the first image and some of the second, so that attention counts."""
    for seed in range(100):
        torch.manual_seed(seed)
        mixed = mix(images, TARGETS, mixing)
        if mixed.targets.mask is not None and 0 < mixed.targets.mask[::4, ::4].double().mean() < 1:
            torch.manual_seed(seed)
            return mixed
    raise AssertionError


RULES = [[], [Distill()], [Guide(weight=0.5)], [Copy()], [Copy(layers=[0]), Distill(layers=[1, 2])]]


@pytest.mark.parametrize("rules", RULES)
def test_the_students_own_forward_gives_the_weight(
    tiny_vit: Build, images: Tensor, unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]], rules: list[Rule]
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    forwards: list[Any] = []
    student.patch_embed.register_forward_hook(lambda *_: forwards.append(None))
    transfer = AttentionTransfer(teacher, student, rules)
    loss = MixedLoss(transfer, ALWAYS_BOXED, label_smoothing=0.1)
    mixed = boxed(images, ALWAYS_BOXED)
    output, task = loss(images, TARGETS)
    assert len(forwards) == 1
    expected = transfer(mixed.images)
    assert torch.equal(output.logits, expected.logits)
    assert list(output.losses) == ["task", *expected.losses]
    with capture(student, layers=[-1]) as calls:
        transfer(mixed.images)
    torch.testing.assert_close(task, by_hand(calls[0].maps().detach(), output.logits, mixed))
    if not any(isinstance(rule, Copy) for rule in rules):
        torch.testing.assert_close(task, by_hand(unfused_maps(student, mixed.images)[-1], output.logits, mixed))


def test_a_copying_student_is_weighed_by_what_it_copies(
    tiny_vit: Build, images: Tensor, unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]]
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    loss = MixedLoss(AttentionTransfer(teacher, student, [Copy()]), ALWAYS_BOXED, label_smoothing=0.1)
    mixed = boxed(images, ALWAYS_BOXED)
    output, task = loss(images, TARGETS)
    torch.testing.assert_close(task, by_hand(unfused_maps(teacher, mixed.images)[-1], output.logits, mixed))


@pytest.mark.parametrize("rules", [*RULES[1:], [LogitKD()], [Copy(layers=[0]), LogitKD()]])
def test_the_teachers_forward_gives_the_weight(
    tiny_vit: Build, images: Tensor, unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]], rules: list[Rule]
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    forwards: list[Any] = []
    teacher.patch_embed.register_forward_hook(lambda *_: forwards.append(None))
    transfer = AttentionTransfer(teacher, student, rules)
    loss = MixedLoss(transfer, BY_TEACHER, label_smoothing=0.1)
    mixed = boxed(images, BY_TEACHER)
    output, task = loss(images, TARGETS)
    assert len(forwards) == 1
    assert torch.equal(output.logits, transfer(mixed.images).logits)
    torch.testing.assert_close(task, by_hand(unfused_maps(teacher, mixed.images)[-1], output.logits, mixed))


def test_the_teachers_own_grid_and_tokens_count(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1, img_size=(8, 16), reg_tokens=2)
    transfer = AttentionTransfer(teacher, tiny_vit(2), [Distill()])
    loss = MixedLoss(transfer, BY_TEACHER)
    mixed = boxed(images, BY_TEACHER)
    output, task = loss(images, TARGETS)
    with capture(teacher, layers=[-1]) as calls:
        teacher(F.interpolate(mixed.images, size=(8, 16), mode="bicubic", antialias=True))
    row = calls[0].maps()[:, :, 0]
    assert mixed.targets.mask is not None
    weight = transmix_weight(row, mixed.targets.mask, tokens=Tokens(("class", "register", "register")), grid=(2, 4))
    torch.testing.assert_close(task, mixed_cross_entropy(output.logits, mixed.targets, weight))


@pytest.mark.parametrize(
    "overrides", [{"reg_tokens": 4}, {"img_size": (8, 16)}, {"name": "deit_tiny_distilled_patch16_224"}]
)
def test_registers_oblong_grids_and_a_distillation_token_of_a_student(
    tiny_vit: Build, overrides: dict[str, Any]
) -> None:
    student = tiny_vit(2, **overrides)
    images = torch.randn(4, 1, *student.patch_embed.img_size)
    mixed = boxed(images, ALWAYS_BOXED)
    output, task = MixedLoss(AttentionTransfer(None, student), ALWAYS_BOXED)(images, TARGETS)
    with capture(student, layers=[-1]) as calls:
        student(mixed.images)
    row = calls[0].maps()[:, :, 0].detach().numpy()
    assert mixed.targets.mask is not None
    weight = reference(row, mixed.targets.mask.numpy(), student.num_prefix_tokens, 0, student.patch_embed.grid_size)
    torch.testing.assert_close(
        task, mixed_cross_entropy(output.logits, mixed.targets, torch.from_numpy(weight).float())
    )


def test_torchvision_networks_are_seen_too(images: Tensor) -> None:
    def build(seed: int) -> VisionTransformer:
        torch.manual_seed(seed)
        sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
        vit = VisionTransformer(**sizes, num_classes=5)
        nn.init.normal_(vit.heads.head.weight)
        for block in vit.encoder.layers:
            nn.init.normal_(block.self_attention.in_proj_weight)
        return vit.eval()

    teacher, student = build(1), build(2)
    colours = images.repeat(1, 3, 1, 1)
    transfer = AttentionTransfer(teacher, student, [Distill()])
    for network, mixing in ((student, ALWAYS_BOXED), (teacher, BY_TEACHER)):
        loss = MixedLoss(transfer, mixing, label_smoothing=0.1)
        mixed = boxed(colours, mixing)
        output, task = loss(colours, TARGETS)
        with capture(network, layers=[-1]) as calls:
            network(mixed.images)
        torch.testing.assert_close(task, by_hand(calls[0].maps().detach(), output.logits, mixed))


def test_mixup_and_unmixed_batches_are_weighed_by_their_share(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    mixing = Mixing(mixup=1.0, cutmix=1.0, mix_switch=0.0, transmix="student")
    loss = MixedLoss(AttentionTransfer(None, student), mixing)
    torch.manual_seed(5)
    mixed = mix(images, TARGETS, mixing)
    torch.manual_seed(5)
    output, task = loss(images, TARGETS)
    assert mixed.targets.mask is None
    torch.testing.assert_close(task, mixed_cross_entropy(output.logits, mixed.targets, mixed.targets.lam))
    _, unmixed = MixedLoss(loss.objective.transfer, Mixing(cutmix=1.0, mix_probability=0.0))(images, TARGETS)
    torch.testing.assert_close(unmixed, F.cross_entropy(student(images), TARGETS))


def test_no_gradient_flows_through_the_weight(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    loss = MixedLoss(AttentionTransfer(None, student), ALWAYS_BOXED, label_smoothing=0.1)
    mixed = boxed(images, ALWAYS_BOXED)
    with capture(student, layers=[-1]) as calls:
        logits = student(mixed.images)
    by_hand(calls[0].maps().detach(), logits, mixed).backward()
    expected = [parameter.grad for parameter in student.parameters()]
    student.zero_grad()
    loss(images, TARGETS)[1].backward()
    for parameter, gradient in zip(student.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("rules", "kind"),
    [([], False), ([Copy()], False), ([Distill()], False), ([], True), ([Copy()], True)],  # losses refuse the last kind
)
def test_gradient_checkpointing_changes_nothing(
    tiny_vit: Build, images: Tensor, reentrant: Callable[[bool], None], rules: list[Rule], kind: bool
) -> None:
    reentrant(kind)
    students = [tiny_vit(2).train(), tiny_vit(2).train()]
    students[1].set_grad_checkpointing(True)
    tasks = []
    for student in students:
        loss = MixedLoss(AttentionTransfer(tiny_vit(1), student, rules), ALWAYS_BOXED)
        boxed(images, ALWAYS_BOXED)
        output, task = loss(images, TARGETS)
        output.loss.backward()
        tasks.append(task)
    torch.testing.assert_close(tasks[1], tasks[0])
    for plain, again in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(again.grad, plain.grad)


def test_matching_heads_on_the_first_batch_does_not_mislead_the_weight(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [Copy()], pairing=Pairing(heads="match"))
    loss = MixedLoss(transfer, ALWAYS_BOXED)
    tasks = []
    for _ in range(2):
        boxed(images, ALWAYS_BOXED)
        tasks.append(loss(images, TARGETS)[1])
    assert torch.equal(tasks[0], tasks[1])


@pytest.mark.parametrize("mixing", [ALWAYS_BOXED, BY_TEACHER])
def test_nothing_stays_on_the_networks(
    tiny_vit: Build, images: Tensor, tapped: Callable[..., list[str]], mixing: Mixing
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [Distill()])
    loss = MixedLoss(transfer, mixing)
    loss(images, TARGETS)
    transfer.release()
    assert tapped(student) == tapped(teacher) == []


@pytest.mark.parametrize(("whose", "mixing"), [("student", ALWAYS_BOXED), ("teacher", BY_TEACHER)])
def test_forwards_in_another_thread_do_not_mislead_the_weight(
    tiny_vit: Build, images: Tensor, whose: str, mixing: Mixing
) -> None:
    networks = {"teacher": tiny_vit(1), "student": tiny_vit(2)}
    loss = MixedLoss(AttentionTransfer(networks["teacher"], networks["student"], [Distill()]), mixing)
    boxed(images, mixing)
    expected = loss(images, TARGETS)[1]

    def elsewhere(*_: Any) -> None:
        hook.remove()
        thread = threading.Thread(target=networks[whose], args=(-images,))
        thread.start()
        thread.join()

    hook = networks["student"].head.register_forward_hook(elsewhere)  # after both have been seen
    boxed(images, mixing)
    assert torch.equal(loss(images, TARGETS)[1], expected)


@pytest.mark.parametrize(
    ("mixing", "rules"),
    [
        (ALWAYS_BOXED, [Guide(), Distill()]),
        (BY_TEACHER, [Copy()]),
        pytest.param(ALWAYS_BOXED, [], marks=pytest.mark.long),
        pytest.param(ALWAYS_BOXED, [Copy()], marks=pytest.mark.long),
    ],
)
def test_a_compiled_step_is_one_graph_with_the_same_loss(
    tiny_vit: Build, images: Tensor, mixing: Mixing, rules: list[Rule]
) -> None:
    torch.compiler.reset()
    loss, counter = MixedLoss(AttentionTransfer(tiny_vit(1), tiny_vit(2), rules), mixing), CompileCounter()
    compiled = torch.compile(loss.objective, backend=counter)
    tasks: list[tuple[Tensor, Tensor]] = []
    for _ in range(2):
        mixed = boxed(images, mixing)
        tasks.append((loss.objective(*mixed).losses["task"], compiled(*mixed).losses["task"]))
    assert counter.frame_count == 1
    for plain, traced in tasks:
        torch.testing.assert_close(traced, plain)


def test_copies_share_the_teacher(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1)
    transfer = AttentionTransfer(teacher, tiny_vit(2), [Distill()])
    loss = MixedLoss(transfer, BY_TEACHER)
    twin = copy.deepcopy(loss)
    assert twin.objective.transfer is not transfer
    assert twin.objective.transfer.teacher is teacher
    tasks = []
    for each in (loss, twin):
        boxed(images, BY_TEACHER)
        tasks.append(each(images, TARGETS)[1])
    assert torch.equal(tasks[0], tasks[1])


def test_a_copy_of_an_objective_learns_by_itself(tiny_vit: Build, images: Tensor) -> None:
    objective = Supervised(AttentionTransfer(tiny_vit(1), tiny_vit(2), [Distill()]), mixing=ALWAYS_BOXED).train()
    twin = copy.deepcopy(objective)
    boxed(images, ALWAYS_BOXED)
    twin(*mix(images, TARGETS, ALWAYS_BOXED)).loss.backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert any(parameter.grad is not None for parameter in twin.parameters())


def test_what_cannot_be_seen_is_refused_at_once(tiny_vit: Build) -> None:
    pooled = tiny_vit(3, class_token=False, global_pool="avg")
    with pytest.raises(UserError, match=r"TransMix needs a class token, which student \S+ does not have"):
        MixedLoss(AttentionTransfer(None, pooled), ALWAYS_BOXED)
    with pytest.raises(UserError, match=r"TransMix needs a class token, which teacher \S+ does not have"):
        MixedLoss(AttentionTransfer(pooled, tiny_vit(2), [LogitKD()]), BY_TEACHER)
    with pytest.raises(UserError, match="needs a rule for which the teacher runs"):
        MixedLoss(AttentionTransfer(None, tiny_vit(2)), BY_TEACHER)
    teacher, student = tiny_vit(1), tiny_vit(2)
    with pytest.raises(UserError, match=r"needs the teacher's last block, 2, but the rules read none after 1"):
        MixedLoss(AttentionTransfer(teacher, student, [Copy(layers=[0, 1])]), BY_TEACHER)
    with pytest.raises(UserErrors, match="mixup is -1"):
        MixedLoss(AttentionTransfer(None, student), Mixing(mixup=-1, cutmix=math.nan))
