"""What else than maps' cross-entropy can be transferred, against references made from captured operands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import Pairing, capture

Array = NDArray[np.float64]
Build = Callable[..., Any]

BIASED = "vit_relpos_small_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"


@dataclass(frozen=True)
class Block:
    """What a block's attention is, in float64."""

    logits: Array
    values: Array

    @property
    def maps(self) -> Array:
        return np.asarray(scipy.special.softmax(self.logits, axis=-1))

    @property
    def output(self) -> Array:
        return np.asarray(self.maps @ self.values)

    def of(self, heads: list[int]) -> Block:
        return Block(self.logits[:, heads], self.values[:, heads])


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def blocks(model: Any, images: Tensor) -> list[Block]:
    """Of a copy of the model."""
    plain = copy.deepcopy(model).eval()
    with capture(plain) as calls, torch.no_grad():
        plain(images)
    return [Block(array(call.logits()), array(call.v)) for call in calls]


def kl(t: Block, s: Block) -> float:
    return float(scipy.special.rel_entr(t.maps, s.maps).sum(axis=-1).mean())


def js(t: Block, s: Block) -> float:
    return float((scipy.spatial.distance.jensenshannon(t.maps, s.maps, axis=-1) ** 2).mean())


def mse(t: Block, s: Block) -> float:
    return float(((t.maps - s.maps) ** 2).sum(axis=-1).mean())


def logits(t: Block, s: Block) -> float:
    return float(((t.logits - s.logits) ** 2).mean())


def output(t: Block, s: Block) -> float:
    return float(((t.output - s.output) ** 2).mean())


DISTANCES: dict[str, tuple[dict[str, Any], Callable[[Block, Block], float]]] = {
    "kl": ({"divergence": "kl"}, kl),
    "js": ({"divergence": "js"}, js),
    "mse": ({"divergence": "mse"}, mse),
    "logits": ({"target": "logits"}, logits),
    "output": ({"target": "output"}, output),
}
each_distance = pytest.mark.parametrize("distance", DISTANCES)


# --- Distill ---


@pytest.mark.parametrize(
    ("layers", "heads", "chosen_layers", "chosen_heads"),
    [
        (None, None, [0, 1, 2], [0, 1, 2]),
        ([-1], None, [2], [0, 1, 2]),
        ("every 2", [0, -1], [0, 2], [0, 2]),
        ("first 2", 1, [0, 1], [2]),
    ],
    ids=["all", "last layer", "some", "last head"],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", BIASED])
@each_distance
def test_the_distance_is_the_mean_over_rows_summed_over_layers(
    distance: str,
    name: str,
    layers: Any,
    heads: Any,
    chosen_layers: list[int],
    chosen_heads: list[int],
    tiny_vit: Build,
    images: Tensor,
) -> None:
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    options, reference = DISTANCES[distance]
    t, s = blocks(teacher, images), blocks(student, images)
    expected = np.mean([reference(t[i].of(chosen_heads), s[i].of(chosen_heads)) for i in chosen_layers])
    result = AttentionTransfer(teacher, student, [Distill(layers=layers, heads=heads, **options)])(images)
    assert result.losses["distill"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(result.logits, student(images))


@pytest.mark.parametrize("distance", ["kl", "js", "mse", "logits"])
def test_teachers_of_other_widths_and_depths_serve_what_has_no_width(
    distance: str, tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, embed_dim=48, depth=6), tiny_vit(2)
    options, reference = DISTANCES[distance]
    t, s = blocks(teacher, images), blocks(student, images)
    expected = np.mean([reference(t[theirs], s[mine]) for mine, theirs in ((0, 3), (1, 4), (2, 5))])
    transfer = AttentionTransfer(teacher, student, [Distill(**options)], pairing=Pairing(layers="last"))
    assert transfer(images).losses["distill"].item() == pytest.approx(expected, rel=1e-4)


@each_distance
def test_registers_that_the_student_lacks_are_left_out_first(distance: str, tiny_vit: Build, images: Tensor) -> None:
    overlay = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    teacher, student = tiny_vit(1, REGISTERS, pretrained_cfg_overlay=overlay), tiny_vit(2)
    options, reference = DISTANCES[distance]
    kept = [0, 5, 6, 7, 8]
    t = [
        Block(block.logits[:, :, kept][..., kept], block.values[:, :, kept])  # a row's softmax is over these alone
        for block in blocks(teacher, images)
    ]
    expected = np.mean([*map(reference, t, blocks(student, images))])
    loss = AttentionTransfer(teacher, student, [Distill(**options)])(images).losses["distill"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@each_distance
def test_a_student_with_its_teachers_weights_has_nothing_to_learn(
    distance: str, tiny_vit: Build, images: Tensor
) -> None:
    teacher = tiny_vit(1)
    largest = []
    for student in (copy.deepcopy(teacher), tiny_vit(2)):
        rules = [Distill(**DISTANCES[distance][0])]
        loss = AttentionTransfer(teacher, student, rules)(images).losses["distill"]
        loss.backward()
        largest.append((loss.item(), student.blocks[0].attn.qkv.weight.grad.abs().max().item()))
    (own_loss, own_gradient), (other_loss, other_gradient) = largest
    assert own_loss == pytest.approx(0, abs=1e-5 * other_loss)
    assert own_gradient < 1e-3 * other_gradient


@pytest.mark.parametrize(
    ("distance", "rows"),
    [(name, slice(0, 48)) for name in ("kl", "js", "mse", "logits")] + [("output", slice(0, 72))],
)
def test_in_the_last_block_only_what_is_compared_is_trained(
    distance: str, rows: slice, tiny_vit: Build, images: Tensor
) -> None:
    """Queries and keys make maps; what the heads read is made of values too."""
    student = tiny_vit(2)
    rules = [Distill(layers=[2], **DISTANCES[distance][0])]
    AttentionTransfer(tiny_vit(1), student, rules)(images).losses["distill"].backward()
    gradient = student.blocks[2].attn.qkv.weight.grad
    for operand in range(0, rows.stop, 24):
        assert gradient[operand : operand + 24].abs().max() > 0
    gradient[rows] = 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("distance", ["kl", "js", "mse", "logits"])
def test_every_way_to_compute_it_gives_the_same(distance: str, tiny_vit: Build, images: Tensor) -> None:
    teacher, results = tiny_vit(1), []
    impls: list[Any] = ["reference", "chunked"]
    for impl in impls:
        student = tiny_vit(2)
        rule = Distill(impl=impl, **DISTANCES[distance][0])
        loss = AttentionTransfer(teacher, student, [rule])(images).losses["distill"]
        loss.backward()
        results.append([loss.detach(), *(block.attn.qkv.weight.grad for block in student.blocks)])
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


RULES: list[Any] = [
    *(Distill(**options) for options, _ in DISTANCES.values()),
    Guide(rows="all"),
    Guide(on="maps"),
    Guide(rows="all", on="maps"),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_gradients_under_checkpointing_are_those_without(rule: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher, gradients = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        result = AttentionTransfer(teacher, student, [rule]).train()(images)
        result.total(result.logits.square().sum()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_heads_read_can_be_distilled_beside_maps_that_are_copied(tiny_vit: Build, images: Tensor) -> None:
    """The student reads by the teacher's maps and its own values, which learn."""
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [Copy(layers=[0]), Distill(target="output", layers=[0])])
    t, s = blocks(teacher, images)[0], blocks(student, images)[0]
    expected = float(((t.maps @ (t.values - s.values)) ** 2).mean())
    loss = transfer(images).losses["distill"]
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    gradient = student.blocks[0].attn.qkv.weight.grad
    assert gradient[48:].abs().max() > 0
    assert gradient[:48].abs().max() == 0


@pytest.mark.parametrize("distance", ["kl", "js", "mse", "logits", "output"])
def test_under_autocast_a_distance_is_not_rounded(distance: str, tiny_vit: Build, images: Tensor) -> None:
    rules = [Distill(**DISTANCES[distance][0])]
    with torch.autocast("cpu", torch.bfloat16):
        loss = AttentionTransfer(tiny_vit(1), tiny_vit(2), rules)(images).losses["distill"]
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("distance", ["kl", "js", "mse", "logits"])
def test_distances_of_copied_maps_are_refused(distance: str, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=r"Copy and Distill both bind layers \[0, 1, 2\]"):
        AttentionTransfer(tiny_vit(1), tiny_vit(2), [Copy(), Distill(**DISTANCES[distance][0])])


def test_what_heads_of_other_dimensions_read_is_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=r"target='output'\) compares .* head dimension 16 .* and 8 .* target='map'"):
        AttentionTransfer(tiny_vit(1, embed_dim=48), tiny_vit(2), [Distill(target="output")])


@pytest.mark.parametrize("target", ["logits", "q", "k", "v", "output"])
@pytest.mark.parametrize("divergence", ["kl", "js", "mse"])
def test_a_divergence_of_what_is_no_map_is_refused(divergence: Any, target: Any) -> None:
    with pytest.raises(UserError) as caught:
        Distill(target=target, divergence=divergence)
    assert str(caught.value) == (
        f"Distill.divergence and average are of maps, and target is '{target}'; leave them out, or set target=\"map\""
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "rows"}, r"Distill\.target is 'rows'; choose one of: k, logits, map, output, q, v"),
        ({"target": "maps"}, r"Distill\.target is 'maps'; did you mean 'map'\?"),
        ({"impl": "fash"}, r"Distill\.impl is 'fash'; did you mean 'flash'\?"),
        ({"divergence": "tv"}, r"Distill\.divergence is 'tv'; choose one of: ce, js, kl, mse"),
        ({"target": "output", "impl": "flash"}, r"Distill\.impl has no effect with target='output'; leave it out"),
        ({"target": "q", "impl": "chunked"}, r"Distill\.impl has no effect with target='q'; leave it out"),
    ],
)
def test_settings_that_do_not_exist_or_have_no_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        Distill(**options)


# --- Guide ---


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", BIASED])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("on", ["logits", "maps"])
@pytest.mark.parametrize(("layers", "heads"), [(None, [0, 1, 2]), ([0, 2], [1])])
def test_all_rows_are_guided(
    layers: Any, heads: list[int], on: Any, reduction: Any, name: str, tiny_vit: Build, images: Tensor
) -> None:
    """Also where there is no class token."""
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    t, s = blocks(teacher, images), blocks(student, images)
    squares = [(getattr(t[i], on) - getattr(s[i], on))[:, heads] ** 2 for i in layers or [0, 1, 2]]
    keys = squares[0].shape[-1] if reduction == "mean" else 1
    expected = np.mean([x.sum(axis=-1).mean() for x in squares]) / keys
    rule = Guide(rows="all", on=on, reduction=reduction, layers=layers, heads=heads)
    loss = AttentionTransfer(teacher, student, [rule])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_class_tokens_row_of_the_maps_is_guided(reduction: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    pairs = zip(blocks(teacher, images), blocks(student, images), strict=True)
    keys = 5 if reduction == "mean" else 1
    expected = np.mean([((t.maps - s.maps)[:, :, 0] ** 2).sum(axis=-1).mean() for t, s in pairs]) / keys
    loss = AttentionTransfer(teacher, student, [Guide(on="maps", reduction=reduction)])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_maps_do_not_know_what_is_added_to_every_logit_of_a_row(tiny_vit: Build, images: Tensor) -> None:
    """A bias of the keys adds the same to all logits of a query."""
    teacher = tiny_vit(1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for block in student.blocks:
            block.attn.qkv.bias[24:48] += 1.0
    result = AttentionTransfer(teacher, student, [Guide(), Guide(on="maps")])(images)
    assert result.losses["guide"].item() > 0.1
    assert result.losses["guide_2"].item() < 1e-8


def test_all_rows_and_one_row_stand_side_by_side(tiny_vit: Build, images: Tensor) -> None:
    """Each of the teacher's calls serves both."""
    teacher, student = tiny_vit(1), tiny_vit(2)
    rules = [Guide(), Guide(rows="all"), Guide(on="maps"), Distill(target="output")]
    alone = [
        AttentionTransfer(teacher, copy.deepcopy(student), [rule])(images).losses[rule.name].item() for rule in rules
    ]
    result = AttentionTransfer(teacher, student, rules)(images)
    assert list(result.losses) == ["guide", "guide_2", "guide_3", "distill"]
    assert [loss.item() for loss in result.losses.values()] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "some"}, r"Guide\.rows is 'some'; choose one of: all, query"),
        ({"on": "values"}, r"Guide\.on is 'values'; choose one of: logits, maps"),
        ({"reduction": "sums"}, r"Guide\.reduction is 'sums'; did you mean 'sum'\?"),
        ({"query": "first"}, r"Guide\.query is 'first'; choose one of: class, mean, pool"),
        ({"rows": "all", "query": "mean"}, r'Guide\.query has no effect with rows="all"; leave one of the two out'),
        ({"rows": "all", "query": "pool"}, r'Guide\.query has no effect with rows="all"; leave one of the two out'),
    ],
)
def test_a_guide_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        Guide(**options)


# --- Averaged heads ---


@pytest.mark.parametrize(
    ("rule", "mixed", "reference"),
    [
        (Distill(target="logits"), "logits", logits),
        (Distill(divergence="mse"), "maps", mse),
        (Guide(rows="all"), "logits", logits),
        (Guide(rows="all", on="maps", reduction="sum"), "maps", mse),
    ],
    ids=["distilled logits", "distilled maps", "guided logits", "guided maps"],
)
def test_the_teachers_heads_are_averaged_in_what_is_compared(
    rule: Any, mixed: str, reference: Callable[[Block, Block], float], tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, num_heads=6, embed_dim=48), tiny_vit(2)

    def averaged(block: Block) -> Block:
        pairs: Array = getattr(block, mixed).reshape(4, 3, 2, 5, 5).mean(axis=2)
        return Block(pairs if mixed == "logits" else np.log(pairs), block.values[:, ::2])

    expected = np.mean([*map(reference, map(averaged, blocks(teacher, images)), blocks(student, images))])
    transfer = AttentionTransfer(teacher, student, [rule], pairing=Pairing(heads="mean"))
    assert transfer(images).losses[rule.name].item() == pytest.approx(expected, rel=1e-4)
