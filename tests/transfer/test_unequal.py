"""Teachers of another depth, width, number of heads, patch grid, kind of tokens or library than their students."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.transfer import module as transfer_module
from attention_transfer.vit import Pairing, capture, describe, set_drop_path

Array = NDArray[np.float64]
Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]
Tapped = Callable[[nn.Module], list[str]]

DINO = "vit_small_patch14_reg4_dinov2"  # four registers, LayerScale, other normalisation
NO_CLASS = {"class_token": False, "global_pool": "avg"}


@dataclass(frozen=True)
class Pair:
    """An unequal pair, and which of the teacher's blocks, heads and tokens the student's have."""

    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    pairing: Pairing = field(default_factory=Pairing)
    blocks: tuple[int, ...] = (0, 1, 2)
    heads: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,))
    kept: int = 1  # prefix tokens
    dropped: int = 0  # those that the student lacks, after the kept ones
    grids: tuple[tuple[int, int], tuple[int, int]] = ((2, 2), (2, 2))


PAIRS = {
    "equal": Pair(),
    "width": Pair({"embed_dim": 48}),
    "depth": Pair({"depth": 6}, blocks=(1, 3, 5)),
    "shallower": Pair({"depth": 2}, blocks=(0, 0, 1)),
    "last blocks": Pair({"depth": 5}, pairing=Pairing(layers="last"), blocks=(2, 3, 4)),
    "named blocks": Pair({"depth": 4}, pairing=Pairing(layers=[2, -1, 0]), blocks=(2, 3, 0)),
    "more heads": Pair({"num_heads": 6}, pairing=Pairing(heads="mean"), heads=((0, 1), (2, 3), (4, 5))),
    "fewer heads": Pair({"num_heads": 1}, pairing=Pairing(heads="mean"), heads=((0,), (0,), (0,))),
    "finer grid": Pair({"img_size": 12}, grids=((3, 3), (2, 2))),
    "coarser grid": Pair({"img_size": 4, "patch_size": 2}, {"img_size": (8, 12)}, grids=((2, 2), (2, 3))),
    "other sides": Pair({"img_size": (20, 8)}, {"img_size": (8, 16)}, grids=((5, 2), (2, 4))),
    "registers": Pair({"name": DINO}, dropped=4),
    "fewer registers": Pair({"name": DINO}, {"name": DINO, "reg_tokens": 2}, kept=3, dropped=2),
    "registers to class": Pair({"name": DINO}, pairing=Pairing(registers="to class"), dropped=4),
    "distillation token": Pair({"name": "deit_tiny_distilled_patch16_224"}, dropped=1),
    "no class token": Pair({}, NO_CLASS, kept=0, dropped=1),
    "bias of positions": Pair({"name": "beit_base_patch16_224", "init_values": 0.1}),
    "bias without its class token": Pair(
        {"name": "beit_base_patch16_224", "init_values": 0.1}, NO_CLASS, kept=0, dropped=1
    ),
    "bias of heads that are averaged": Pair(
        {"name": "beit_base_patch16_224", "init_values": 0.1, "num_heads": 6},
        pairing=Pairing(heads="mean"),
        heads=((0, 1), (2, 3), (4, 5)),
    ),
    "bias of heads that are repeated": Pair(
        {"name": "vit_relpos_small_patch16_224", "num_heads": 1},
        NO_CLASS,
        Pairing(heads="mean"),
        heads=((0,), (0,), (0,)),
        kept=0,
    ),
    "bias on another grid": Pair(
        {"name": "beit_base_patch16_224", "init_values": 0.1, "img_size": 16}, grids=((4, 4), (2, 2))
    ),
    "all at once": Pair(
        {"name": DINO, "depth": 4, "num_heads": 6, "embed_dim": 48, "img_size": 12},
        {},
        Pairing(heads="mean", registers="to class", layers="last"),
        (1, 2, 3),
        ((0, 1), (2, 3), (4, 5)),
        dropped=4,
        grids=((3, 3), (2, 2)),
    ),
    "all at once, dropped": Pair(
        {"name": DINO, "depth": 6, "num_heads": 6, "embed_dim": 48, "img_size": 8},
        {"img_size": 12},
        Pairing(heads="mean"),
        (1, 3, 5),
        ((0, 1), (2, 3), (4, 5)),
        dropped=4,
        grids=((2, 2), (3, 3)),
    ),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def made(pair: Pair, tiny_vit: Build) -> tuple[Any, Any, Tensor]:
    """Teacher, student and images for the student."""
    teacher, student = tiny_vit(1, **pair.teacher), tiny_vit(2, **pair.student)
    size = describe(student).image_size
    return teacher, student, torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(7))


def for_teacher(images: Tensor, teacher: nn.Module, student: nn.Module) -> Tensor:
    """The same images as the teacher expects them."""
    t, s = describe(teacher), describe(student)
    raw = images.double() * torch.tensor(s.std)[:, None, None] + torch.tensor(s.mean)[:, None, None]
    other = ((raw - torch.tensor(t.mean)[:, None, None]) / torch.tensor(t.std)[:, None, None]).float()
    return F.interpolate(other, size=t.image_size, mode="bicubic", antialias=True)


def side_weights(size_t: int, size_s: int) -> Array:
    """How much of each old position is in each new one, (new, old): triangles that are wider where the grid shrinks."""
    ratio = size_t / size_s
    centres = (np.arange(size_s)[:, None] + 0.5) * ratio
    distance = np.abs(np.arange(size_t)[None] + 0.5 - centres) / max(ratio, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def grid_weights(pair: Pair) -> Array:
    """The same over whole grids, (patches of the student, patches of the teacher)."""
    (rows_t, columns_t), (rows_s, columns_s) = pair.grids
    if pair.grids[0] == pair.grids[1]:
        return np.eye(rows_t * columns_t)
    both: Array = np.asarray(
        np.kron(side_weights(rows_t, rows_s), side_weights(columns_t, columns_s)), dtype=np.float64
    )
    return both


def mapped_maps(given_BHNM: Tensor, pair: Pair) -> Array:
    """A block's maps over the student's heads and tokens, in float64, a matrix at a time."""
    patches = grid_weights(pair)
    start = pair.kept + pair.dropped
    queries = np.zeros((pair.kept + len(patches), start + patches.shape[1]))
    queries[range(pair.kept), range(pair.kept)] = 1
    queries[pair.kept :, start:] = patches
    result = []
    for image in given_BHNM.double().numpy():
        for heads in pair.heads:
            whole = np.mean([image[head] for head in heads], axis=0)
            first, lost, last = np.split(whole, [pair.kept, start], axis=1)
            if pair.pairing.registers == "to class":
                first = first + np.eye(1, pair.kept) * lost.sum(axis=1, keepdims=True)
            moved = last @ patches.T
            moved *= last.sum(axis=1, keepdims=True) / moved.sum(axis=1, keepdims=True)
            rows = queries @ np.concatenate([first, moved], axis=1)
            result.append(rows / rows.sum(axis=1, keepdims=True))
    tokens = len(queries)
    return np.stack(result).reshape(len(given_BHNM), len(pair.heads), tokens, tokens)


def mapped_row(row_BHM: Array, pair: Pair) -> Array:
    """A row of logits over the student's heads and keys."""
    averaged = np.stack([row_BHM[:, list(heads)].mean(axis=1) for heads in pair.heads], axis=1)
    first, last = averaged[..., : pair.kept], averaged[..., pair.kept + pair.dropped :]
    return np.concatenate([first, last @ grid_weights(pair).T], axis=-1)


def cross_entropy(maps_t: Array, maps_s: Array) -> float:
    return float(-(maps_t * np.log(maps_s)).sum(axis=-1).mean())


def all_logits(model: Any, images: Tensor) -> list[Array]:
    """All logits, (B, H, N, M) a layer, from the output of each block's qkv layer and its bias of positions."""
    plain = copy.deepcopy(model)
    if hasattr(plain, "rel_pos_bias"):  # BEiT, whose qkv layer is not called as a module
        with capture(plain) as calls, torch.no_grad():
            plain(images)
        return [call.logits().double().numpy() for call in calls]
    found: list[Array] = []
    for block in plain.blocks:
        bias = block.attn.rel_pos.get_bias().detach().double().numpy() if hasattr(block.attn, "rel_pos") else 0.0

        def keep(module: Any, args: Any, qkv_BNC: Tensor, heads: int = block.attn.num_heads, bias: Any = bias) -> None:
            q, k, _ = qkv_BNC.double().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).numpy()
            found.append(np.einsum("bhnd,bhmd->bhnm", q, k) / np.sqrt(q.shape[-1]) + bias)

        block.attn.qkv.register_forward_hook(keep)
    with torch.no_grad():
        plain(images)
    return found


# --- each rule on each pair ---


@each_pair
def test_a_copying_student_attends_by_the_mapped_maps(pair: Pair, tiny_vit: Build, unfused_maps: Maps) -> None:
    teacher, student, images = made(pair, tiny_vit)
    theirs = unfused_maps(teacher, for_teacher(images, teacher, student))
    transfer = AttentionTransfer(teacher, student, [Copy()], pairing=pair.pairing)
    with capture(student) as calls:
        logits = transfer(images).logits
    assert [call.layer for call in calls] == [0, 1, 2]
    expected = [mapped_maps(theirs[block], pair) for block in pair.blocks]
    for call, maps in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.maps().double(), torch.from_numpy(maps), atol=2e-5, rtol=0)
    plain = copy.deepcopy(student)
    for block, maps in zip(plain.blocks, expected, strict=True):
        block.attn.fused_attn = False
        given = torch.from_numpy(maps).float()
        block.attn.attn_drop.register_forward_hook(lambda module, args, output, given=given: given)
    torch.testing.assert_close(logits, plain(images), atol=2e-4, rtol=2e-4)


@each_pair
def test_the_distilled_loss_is_the_cross_entropy_with_the_mapped_maps(
    pair: Pair, tiny_vit: Build, unfused_maps: Maps
) -> None:
    teacher, student, images = made(pair, tiny_vit)
    theirs = unfused_maps(teacher, for_teacher(images, teacher, student))
    own = [maps.double().numpy() for maps in unfused_maps(student, images)]
    expected = [cross_entropy(mapped_maps(theirs[pair.blocks[i]], pair), own[i]) for i in range(3)]
    transfer = AttentionTransfer(teacher, student, [Distill(), Distill(layers=[1])], pairing=pair.pairing)
    losses = transfer(images).losses
    assert losses["distill"].item() == pytest.approx(np.mean(expected), rel=2e-5)
    assert losses["distill_2"].item() == pytest.approx(expected[1], rel=2e-5)


@pytest.mark.parametrize("query", ["class", "mean"])
@each_pair
def test_the_guided_row_is_the_mapped_row(pair: Pair, query: Any, tiny_vit: Build) -> None:
    teacher, student, images = made(pair, tiny_vit)
    if query == "class" and pair.kept == 0:
        with pytest.raises(UserError, match="needs a class token"):
            AttentionTransfer(teacher, student, [Guide(query=query)], pairing=pair.pairing)
        return
    theirs = all_logits(teacher, for_teacher(images, teacher, student))
    own = all_logits(student, images)
    expected = []
    for layer, block in enumerate(pair.blocks):
        rows_t, rows_s = (
            (slice(0, 1),) * 2 if query == "class" else (slice(pair.kept + pair.dropped, None), slice(pair.kept, None))
        )
        t = mapped_row(theirs[block][:, :, rows_t].mean(axis=2), pair)
        s = own[layer][:, :, rows_s].mean(axis=2)
        expected.append(float(((t - s) ** 2).mean()))
    transfer = AttentionTransfer(teacher, student, [Guide(query=query)], pairing=pair.pairing)
    assert transfer(images).losses["guide"].item() == pytest.approx(np.mean(expected), rel=1e-4)


RULES: dict[str, Sequence[Any]] = {
    "copy": [Copy()],
    "distill": [Distill()],
    "guide": [Guide(query="mean")],
    "all": [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2], query="mean")],
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["equal", "finer grid", "registers", "bias without its class token", "all at once"])
def test_gradients_under_checkpointing_are_those_without(name: str, rules: Any, tiny_vit: Build) -> None:
    """Two steps whose backward passes come together, and the student by itself in between."""
    gradients = []
    for checkpointing in (False, True):
        teacher, student, images = made(PAIRS[name], tiny_vit)
        student.set_grad_checkpointing(checkpointing)
        transfer = AttentionTransfer(teacher, student, rules, pairing=PAIRS[name].pairing).train()
        outputs = [transfer(images), transfer(images.flip(0) * 2)]
        alone = student(images)
        totals = [output.total(output.logits.square().sum()) for output in outputs]
        torch.stack([*totals, alone.square().sum()]).sum().backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["equal", "finer grid"])
def test_a_backward_pass_under_checkpointing_may_outlive_the_transfer(name: str, tiny_vit: Build) -> None:
    """The blocks that run again still meet the rules."""

    def loss_of(checkpointing: bool) -> tuple[Any, Tensor]:
        teacher, student, images = made(PAIRS[name], tiny_vit)
        student.set_grad_checkpointing(checkpointing)
        return student, AttentionTransfer(teacher, student, [Copy()]).train()(images).logits.square().sum()

    gradients = []
    for checkpointing in (False, True):
        student, loss = loss_of(checkpointing)
        gc.collect()
        loss.backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_steps_on_the_loss_bring_an_unlike_student_to_the_mapped_maps(tiny_vit: Build, unfused_maps: Maps) -> None:
    pair = PAIRS["all at once"]
    teacher, student, images = made(pair, tiny_vit)
    theirs = unfused_maps(teacher, for_teacher(images, teacher, student))
    wanted = [mapped_maps(theirs[block], pair) for block in pair.blocks]

    def distance() -> float:
        own = unfused_maps(student, images)
        return sum(float(np.abs(t - s.double().numpy()).mean()) for t, s in zip(wanted, own, strict=True))

    transfer = AttentionTransfer(teacher, student, [Distill(weight=1.0)], pairing=pair.pairing)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    before = distance()
    for _ in range(40):
        optimizer.zero_grad()
        transfer(images).total(torch.zeros(())).backward()
        optimizer.step()
    assert distance() < before / 2


# --- nothing changes where nothing differs ---


@pytest.mark.parametrize(
    "pairing",
    [
        Pairing(),
        Pairing(layers="last"),
        Pairing(layers=[0, 1, 2]),
        Pairing(layers=[-3, -2, -1], heads="mean", registers="to class"),
    ],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", DINO, "beit_base_patch16_224"])
def test_an_equal_pair_is_bitwise_the_same_under_any_pairing(
    name: str, pairing: Pairing, tiny_vit: Build, images: Tensor
) -> None:
    rules = [Copy(layers=[0]), Distill(layers=[1, 2]), Guide(layers=[2])]
    results = []
    for chosen in (None, pairing):
        output = AttentionTransfer(tiny_vit(1, name), tiny_vit(2, name), rules, pairing=chosen)(images)
        results.append([output.logits, *output.losses.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_teacher_for_the_same_input_gets_the_very_images(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1)
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    AttentionTransfer(teacher, tiny_vit(2), [Distill()])(images)
    assert seen[0] is images


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": 12},
        {"img_size": 16, "patch_size": 8},
        {"pretrained_cfg_overlay": {"mean": (0.2,), "std": (0.7,)}},
        {"pretrained_cfg_overlay": {"mean": (0.2,), "std": (0.7,)}, "img_size": 4},
    ],
    ids=["grid and size", "size alone", "normalisation", "size and normalisation"],
)
def test_a_teacher_for_other_input_gets_the_images_as_if_they_were_made_for_it(
    options: Any, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, **options), tiny_vit(2)
    expected = for_teacher(images, teacher, student)
    seen: list[Tensor] = []
    handle = teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss = AttentionTransfer(teacher, student, [Distill()])(images).losses["distill"]
    handle.remove()
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    if describe(teacher).grid == (2, 2):
        pairs = zip(unfused_maps(teacher, expected), unfused_maps(student, images), strict=True)
        wanted = np.mean([cross_entropy(t.double().numpy(), s.double().numpy()) for t, s in pairs])
        assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_an_unequal_transfer_moves_to_another_precision(tiny_vit: Build) -> None:
    pair = PAIRS["all at once"]
    teacher, student, images = made(pair, tiny_vit)
    rules = [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2])]
    transfer = AttentionTransfer(teacher, student, rules, pairing=pair.pairing)
    single = transfer(images)
    double = transfer.to(torch.float64)(images.double())
    assert double.logits.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), single.logits, atol=1e-4, rtol=1e-4)
    for name, loss in single.losses.items():
        assert double.losses[name].item() == pytest.approx(loss.item(), rel=1e-4)


def test_a_deep_copy_is_as_unequal(tiny_vit: Build) -> None:
    pair = PAIRS["all at once"]
    teacher, student, images = made(pair, tiny_vit)
    rules = [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2])]
    transfer = AttentionTransfer(teacher, student, rules, pairing=pair.pairing)
    expected, actual = transfer(images), copy.deepcopy(transfer)(images)
    assert torch.equal(actual.logits, expected.logits)
    assert actual.losses == expected.losses


# --- heads that are matched ---


def matched(teacher: Any, student: Any, images: Tensor, unfused_maps: Maps) -> list[tuple[int, ...]]:
    """For each block the teacher's head of each of the student's: least sum of mean divergences, over all orders."""
    found = []
    for maps_t, maps_s in zip(unfused_maps(teacher, images), unfused_maps(student, images), strict=True):
        divergences = np.array(
            [
                [np.mean(jensenshannon(s.double().numpy(), t.double().numpy(), axis=-1) ** 2) for t in maps_t.unbind(1)]
                for s in maps_s.unbind(1)
            ]
        )
        h_s, h_t = divergences.shape
        if h_t < h_s:
            found.append(tuple(int(row.argmin()) for row in divergences))
            continue
        orders = list(permutations(range(h_t), h_s))
        found.append(min(orders, key=lambda order: float(sum(divergences[s, t] for s, t in enumerate(order)))))
    return found


@pytest.mark.parametrize("heads_t", [2, 3, 4, 6])
def test_heads_are_matched_on_the_first_batch_by_their_divergence(
    heads_t: int, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, num_heads=heads_t), tiny_vit(2)
    pairs = matched(teacher, student, images, unfused_maps)
    assert len(set(pairs)) > 1  # else a mistake between layers would not be seen
    theirs, own = unfused_maps(teacher, images), unfused_maps(student, images)
    expected = np.mean(
        [cross_entropy(theirs[i][:, list(pairs[i])].double().numpy(), own[i].double().numpy()) for i in range(3)]
    )
    transfer = AttentionTransfer(teacher, student, [Distill()], pairing=Pairing(heads="match"))
    assert transfer.state_dict()["head_pairs.pairs"].tolist() == [[-1] * 3] * 3
    output = transfer(images)
    assert [tuple(row) for row in transfer.state_dict()["head_pairs.pairs"].tolist()] == pairs
    assert output.losses["distill"].item() == pytest.approx(expected, rel=1e-5)


def test_matched_heads_are_copied_and_guided_too(tiny_vit: Build, images: Tensor, unfused_maps: Maps) -> None:
    teacher, student = tiny_vit(1, num_heads=4), tiny_vit(2)
    pairs = matched(teacher, student, images, unfused_maps)
    rows_t, rows_s = all_logits(teacher, images), all_logits(student, images)
    transfer = AttentionTransfer(
        teacher, student, [Guide(layers=[0]), Copy(layers=[2])], pairing=Pairing(heads="match")
    )
    with capture(student, layers=[2]) as calls:
        output = transfer(images)
    expected = ((rows_t[0][:, list(pairs[0]), 0] - rows_s[0][:, :, 0]) ** 2).mean()
    assert output.losses["guide"].item() == pytest.approx(expected, rel=1e-4)
    # The student ran once before, to be compared.
    torch.testing.assert_close(calls[-1].maps(), unfused_maps(teacher, images)[2][:, list(pairs[2])])


def test_heads_are_matched_over_the_students_blocks_tokens_and_grid(tiny_vit: Build, unfused_maps: Maps) -> None:
    """The same student with its heads in another order is matched to the same teacher's heads in that order."""
    pair = Pair(
        {"name": DINO, "depth": 6, "num_heads": 6, "embed_dim": 48, "img_size": 12},
        {},
        Pairing(heads="match"),
        (1, 3, 5),
        tuple((head,) for head in range(6)),
        dropped=4,
        grids=((3, 3), (2, 2)),
    )
    teacher, student, images = made(pair, tiny_vit)
    theirs = unfused_maps(teacher, for_teacher(images, teacher, student))
    transfer = AttentionTransfer(teacher, student, [Distill()], pairing=pair.pairing)
    transfer(images)
    for layer, own in enumerate(unfused_maps(student, images)):
        mapped = mapped_maps(theirs[pair.blocks[layer]], pair)
        costs = {
            order: sum(
                np.mean(jensenshannon(own[:, s].double().numpy(), mapped[:, t], axis=-1) ** 2)
                for s, t in enumerate(order)
            )
            for order in permutations(range(6), 3)
        }
        found = tuple(transfer.state_dict()["head_pairs.pairs"][layer].tolist())
        assert found == min(costs, key=lambda order: float(costs[order]))


def no_more(*_: object) -> Tensor:
    raise AssertionError("heads were matched again")


def test_heads_are_matched_once(tiny_vit: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another batch, or the student after some steps, would be matched otherwise."""
    teacher, student = tiny_vit(1, num_heads=6), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [Distill()], pairing=Pairing(heads="match"))
    transfer(images)
    pairs = transfer.state_dict()["head_pairs.pairs"].clone()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    again = AttentionTransfer(teacher, copy.deepcopy(student), [Distill()], pairing=Pairing(heads="match"))
    again(images)
    assert not torch.equal(again.state_dict()["head_pairs.pairs"], pairs)
    monkeypatch.setattr(transfer_module, "head_divergences", no_more)
    transfer(images * 2)
    transfer.train()(images)
    assert torch.equal(transfer.state_dict()["head_pairs.pairs"], pairs)


def test_heads_of_networks_in_half_precision_are_matched_in_single_precision(
    tiny_vit: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    divergences = transfer_module.head_divergences

    def noting(student: Tensor, teacher: Tensor) -> Tensor:
        seen.extend((student.dtype, teacher.dtype))
        return divergences(student, teacher)

    monkeypatch.setattr(transfer_module, "head_divergences", noting)
    teacher, student = tiny_vit(1, num_heads=6).bfloat16(), tiny_vit(2).bfloat16()
    AttentionTransfer(teacher, student, [Distill()], pairing=Pairing(heads="match"))(images.bfloat16())
    assert set(seen) == {torch.float32}


def test_pairs_of_heads_survive_a_deep_copy_and_saving(
    tiny_vit: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transfer_of(seed: int) -> AttentionTransfer:
        student = tiny_vit(seed)
        rules = [Distill(), Guide()]
        return AttentionTransfer(tiny_vit(1, num_heads=6), student, rules, pairing=Pairing(heads="match"))

    transfer = transfer_of(2)
    early = copy.deepcopy(transfer)
    expected = transfer(images)
    pairs = transfer.state_dict()["head_pairs.pairs"]
    stranger = transfer_of(5)
    other = copy.deepcopy(stranger)
    other(images)
    assert not torch.equal(other.state_dict()["head_pairs.pairs"], pairs)  # what it would find by itself
    assert early(images).losses == expected.losses  # it has none to keep, and finds its own
    monkeypatch.setattr(transfer_module, "head_divergences", no_more)
    twin = copy.deepcopy(transfer)
    assert torch.equal(twin.state_dict()["head_pairs.pairs"], pairs)
    assert twin(images).losses == expected.losses
    stranger.load_state_dict(transfer.state_dict())
    restored = stranger(images)
    assert torch.equal(stranger.state_dict()["head_pairs.pairs"], pairs)
    assert torch.equal(restored.logits, expected.logits)
    assert restored.losses == expected.losses


def test_matching_leaves_the_students_weights_and_the_layers_without_rules_alone(
    tiny_vit: Build, images: Tensor
) -> None:
    student = tiny_vit(2)
    before = copy.deepcopy(student.state_dict())
    transfer = AttentionTransfer(
        tiny_vit(1, num_heads=6), student, [Distill(layers=[1])], pairing=Pairing(heads="match")
    )
    output = transfer(images)
    assert torch.equal(output.logits, student(images))
    pairs = transfer.state_dict()["head_pairs.pairs"]
    assert pairs[[0, 2]].tolist() == [[-1] * 3] * 2
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert [name for name in transfer.state_dict() if not name.startswith("student.")] == ["head_pairs.pairs"]


def test_equal_heads_can_be_matched_and_a_shuffled_teacher_is_put_in_order(tiny_vit: Build, images: Tensor) -> None:
    """The student has the teacher's weights, the teacher then its heads in another order."""
    student = tiny_vit(1)
    teacher = copy.deepcopy(student)
    order = [2, 0, 1]
    with torch.no_grad():
        for block in teacher.blocks:
            qkv = block.attn.qkv
            qkv.weight.copy_(qkv.weight.unflatten(0, (3, 3, 8))[:, order].flatten(0, 2))
            qkv.bias.copy_(qkv.bias.unflatten(0, (3, 3, 8))[:, order].flatten())
            block.attn.proj.weight.copy_(block.attn.proj.weight.unflatten(1, (3, 8))[:, order].flatten(1))
    transfer = AttentionTransfer(teacher, student, [Guide()], pairing=Pairing(heads="match"))
    assert transfer(images).losses["guide"].item() < 1e-8
    assert transfer.state_dict()["head_pairs.pairs"].tolist() == [[1, 2, 0]] * 3
    assert AttentionTransfer(teacher, student, [Guide()])(images).losses["guide"].item() > 0.1


def test_pairs_that_were_saved_for_fewer_layers_are_completed(tiny_vit: Build, images: Tensor) -> None:
    teacher, pairing = tiny_vit(1, num_heads=6), Pairing(heads="match")
    first = AttentionTransfer(teacher, tiny_vit(2), [Distill(layers=[0])], pairing=pairing)
    first(images)
    second = AttentionTransfer(teacher, tiny_vit(2), [Distill()], pairing=pairing)
    second.load_state_dict(first.state_dict())
    second(images)
    assert int(second.state_dict()["head_pairs.pairs"].min()) >= 0


# --- other libraries ---


def eager_maps(model: Any, images: Tensor) -> list[Tensor]:
    """Attention maps by the plain code of transformers."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        return list(plain(images, output_attentions=True).attentions)


HF: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}


def sharpened(model: Any) -> Any:
    """Weights that do not leave every map flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def hf_beit() -> Any:
    config = transformers.BeitConfig(**HF, use_relative_position_bias=True)
    return sharpened(transformers.BeitModel(config))


def hf_registers() -> Any:
    sizes = {key: value for key, value in HF.items() if key != "intermediate_size"}
    config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2)
    return sharpened(transformers.Dinov2WithRegistersModel(config))


def hf_detection() -> Any:
    """Six detection tokens after the patches."""
    config = transformers.YolosConfig(**HF | {"image_size": [8, 8]}, num_detection_tokens=6)
    return sharpened(transformers.YolosModel(config))


@pytest.mark.parametrize(
    ("make", "options", "kept"),
    [
        (hf_beit, {}, [0, 1, 2, 3, 4]),
        (hf_beit, NO_CLASS, [1, 2, 3, 4]),
        (hf_registers, {}, [0, 5, 6, 7, 8]),
        (hf_registers, NO_CLASS, [5, 6, 7, 8]),
        (hf_detection, {}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_teacher_of_hugging_face_is_copied_by_a_student_of_timm(
    make: Callable[[], Any], options: Any, kept: list[int], tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = make(), tiny_vit(2, **options)
    theirs = eager_maps(teacher, for_teacher(images, teacher, student))
    transfer = AttentionTransfer(teacher, student, [Copy()])
    with capture(student) as calls:
        transfer(images)
    for call, maps in zip(calls, theirs, strict=True):
        picked = maps[:, :, kept][..., kept]
        torch.testing.assert_close(call.maps(), picked / picked.sum(-1, keepdim=True), atol=2e-5, rtol=0)


def test_a_teacher_of_torchvision_distils_to_a_student_of_timm_of_another_grid(tiny_vit: Build) -> None:
    torch.manual_seed(1)
    teacher = sharpened(
        torchvision.models.VisionTransformer(
            image_size=12, patch_size=4, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5
        )
    )
    student = tiny_vit(2, in_chans=3)
    images = torch.randn(3, 3, 8, 8)
    pair = Pair(grids=((3, 3), (2, 2)))
    maps: list[Tensor] = []
    plain: Any = copy.deepcopy(teacher)
    for block, untouched in zip(plain.encoder.layers, teacher.encoder.layers, strict=True):

        def keep(module: Any, args: Any, attention: Any = untouched.self_attention) -> None:
            maps.append(attention(*args, need_weights=True, average_attn_weights=False)[1])

        block.self_attention.register_forward_pre_hook(keep)
    with torch.no_grad():
        plain(for_teacher(images, teacher, student))
    with capture(student) as calls:
        student(images)
    expected = np.mean(
        [
            cross_entropy(mapped_maps(t, pair), call.maps().detach().double().numpy())
            for t, call in zip(maps, calls, strict=True)
        ]
    )
    loss = AttentionTransfer(teacher, student, [Distill()])(images).losses["distill"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# --- a refused pair ---


def test_a_pair_whose_drop_path_cannot_be_shared_is_left_as_it_was(tiny_vit: Build, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1, depth=2), tiny_vit(2)
    set_drop_path(student, 0.2)
    with pytest.raises(UserError, match="same depth"):
        AttentionTransfer(teacher, student, [Distill()], share_drop_path=True)
    assert tapped(student) == tapped(teacher) == []
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("size", [4, 12])
def test_registers_are_dropped_at_any_image_size_that_both_take(size: int, tiny_vit: Build, unfused_maps: Maps) -> None:
    """As an equal pair is transferred at any size."""
    teacher, student = tiny_vit(1, reg_tokens=2, dynamic_img_size=True), tiny_vit(2, dynamic_img_size=True)
    images = torch.randn(2, 1, size, size)
    pair = Pair(dropped=2, grids=((size // 4,) * 2,) * 2)
    pairs = zip(unfused_maps(teacher, images), unfused_maps(student, images), strict=True)
    expected = np.mean([cross_entropy(mapped_maps(t, pair), s.double().numpy()) for t, s in pairs])
    loss = AttentionTransfer(teacher, student, [Distill()])(images).losses["distill"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("registers", ["drop", "to class"])
def test_a_teacher_in_lower_precision_is_mapped_in_single_precision(
    registers: Any, tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, DINO, img_size=12), tiny_vit(2)
    pairing = Pairing(registers=registers)
    expected = AttentionTransfer(teacher, student, [Distill()], pairing=pairing)(images).losses["distill"]
    rounded = AttentionTransfer(teacher, student, [Distill()], pairing=pairing, teacher_dtype=torch.bfloat16)
    loss = rounded(images).losses["distill"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert math.isfinite(loss.item())
