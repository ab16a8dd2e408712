"""Maps that are averaged before they are transferred, against maps averaged by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill
from attention_transfer.vit import Pairing

Array = NDArray[np.float64]
Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]

DIMENSIONS = {"images": 0, "heads": 1, "queries": 2}
BIASED = "vit_relpos_small_patch16_224"
each_average = pytest.mark.parametrize("over", DIMENSIONS)
each_kind = pytest.mark.parametrize("name", ["vit_tiny_patch16_224", BIASED])


def averages(maps: list[Tensor], over: str) -> list[Tensor]:
    """Maps of each block, (B, H, N, N), of which all along a dimension are one."""
    return [p.mean(dim=DIMENSIONS[over], keepdim=True).expand_as(p) for p in maps]


def attending_by(student: Any, maps: dict[int, Tensor]) -> Any:
    """A copy of a student that uses these maps in some of its blocks."""
    plain = copy.deepcopy(student)
    for layer, given in maps.items():
        plain.blocks[layer].attn.fused_attn = False
        plain.blocks[layer].attn.attn_drop.register_forward_hook(lambda module, args, output, given=given: given)
    return plain


def cross_entropy(p_t: Array, p_s: Array) -> float:
    return float(-(p_t * np.log(p_s)).sum(axis=-1).mean())


def kl(p_t: Array, p_s: Array) -> float:
    return float(scipy.special.rel_entr(p_t, p_s).sum(axis=-1).mean())


def js(p_t: Array, p_s: Array) -> float:
    return (kl(p_t, (p_t + p_s) / 2) + kl(p_s, (p_t + p_s) / 2)) / 2


def mse(p_t: Array, p_s: Array) -> float:
    return float(((p_t - p_s) ** 2).sum(axis=-1).mean())


DIVERGENCES: dict[str, Callable[[Array, Array], float]] = {"ce": cross_entropy, "kl": kl, "js": js, "mse": mse}


def summed(divergence: str, teacher: list[Tensor], student: list[Tensor]) -> float:
    pairs = zip(teacher, student, strict=True)
    return float(np.mean([DIVERGENCES[divergence](t.double().numpy(), s.double().numpy()) for t, s in pairs]))


@each_kind
@each_average
@pytest.mark.parametrize("layers", [None, [1]])
def test_a_student_attends_by_the_average(
    layers: list[int] | None, over: Any, name: str, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    mixed = averages(unfused_maps(teacher, images), over)
    expected = attending_by(student, {layer: mixed[layer] for layer in layers or [0, 1, 2]})(images)
    actual = AttentionTransfer(teacher, student, [Copy(average=over, layers=layers)])(images).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    plain = AttentionTransfer(teacher, student, [Copy(layers=layers)])(images).logits
    assert not torch.allclose(actual, plain, atol=1e-2)


@each_kind
@each_average
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_learns_from_the_average(
    divergence: Any, over: Any, name: str, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    t, s = unfused_maps(teacher, images), unfused_maps(student, images)
    expected = summed(divergence, averages(t, over), s)
    assert expected != pytest.approx(summed(divergence, t, s), rel=1e-3)
    rule = Distill(average=over, divergence=divergence)
    output = AttentionTransfer(teacher, student, [rule])(images)
    assert output.losses["distill"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(output.logits, student(images))


def test_some_blocks_and_a_teacher_of_another_size_are_averaged_too(
    tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, embed_dim=48, depth=6), tiny_vit(2)
    t, s = unfused_maps(teacher, images), unfused_maps(student, images)
    expected = summed("ce", averages([t[1], t[5]], "queries"), [s[0], s[2]])
    output = AttentionTransfer(teacher, student, [Distill(average="queries", layers="every 2")])(images)
    assert output.losses["distill"].item() == pytest.approx(expected, rel=1e-4)


def test_heads_are_averaged_after_they_are_paired(tiny_vit: Build, images: Tensor, unfused_maps: Maps) -> None:
    teacher, student = tiny_vit(1, num_heads=6, embed_dim=48), tiny_vit(2)
    paired = [maps.unflatten(1, (3, 2)).mean(dim=2) for maps in unfused_maps(teacher, images)]
    expected = summed("ce", averages(paired, "images"), unfused_maps(student, images))
    rule, pairing = Distill(average="images"), Pairing(heads="mean")
    output = AttentionTransfer(teacher, student, [rule], pairing=pairing)(images)
    assert output.losses["distill"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("over", "options"), [("images", {}), ("heads", {"num_heads": 1})])
@pytest.mark.parametrize("rule", [Copy, Distill])
def test_an_average_of_one_is_no_average(
    rule: Any, over: Any, options: dict[str, int], tiny_vit: Build, images: Tensor
) -> None:
    batch = images[:1] if over == "images" else images
    teacher, student = tiny_vit(1, **options), tiny_vit(2, **options)
    expected = AttentionTransfer(teacher, copy.deepcopy(student), [rule()])(batch)
    actual = AttentionTransfer(teacher, student, [rule(average=over)])(batch)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)
    for name, loss in expected.losses.items():
        torch.testing.assert_close(actual.losses[name], loss, atol=1e-4, rtol=1e-4)


def test_what_is_averaged_over_is_the_same_for_all(tiny_vit: Build, images: Tensor) -> None:
    """Two different batches with one image in common."""
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Copy(average="images")])
    assert not torch.allclose(transfer(images).logits[:1], transfer(images[:2]).logits[:1], atol=1e-3)
    turned = transfer(images.flip(0)).logits.flip(0)
    torch.testing.assert_close(turned, transfer(images).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", [Copy(average="heads"), Distill(average="queries")])
def test_gradients_are_those_of_the_average_also_under_checkpointing(
    rule: Any, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, results = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        output = AttentionTransfer(teacher, student, [rule]).train()(images)
        output.total(output.logits.square().sum()).backward()
        results.append([p.grad for p in student.parameters()])
    torch.testing.assert_close(results[1], results[0])
    if isinstance(rule, Copy):
        mixed = averages(unfused_maps(teacher, images), "heads")
        plain = attending_by(tiny_vit(2), dict(enumerate(mixed)))
        plain(images).square().sum().backward()
        values = results[0][[name for name, _ in plain.named_parameters()].index("blocks.0.attn.qkv.weight")]
        torch.testing.assert_close(values, plain.blocks[0].attn.qkv.weight.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [{"parts": "q"}, {"parts": "v"}, {"heads": [0]}, {"parts": "k", "heads": [0]}])
def test_only_whole_maps_that_are_copied_can_be_averaged(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'^Copy\.average is of whole maps; leave parts at "qk" and heads out$'):
        Copy(average="images", **options)


@pytest.mark.parametrize("target", ["logits", "q", "k", "v", "output"])
def test_only_maps_that_are_distilled_can_be_averaged(target: Any) -> None:
    with pytest.raises(UserError, match=rf"^Distill\.divergence and average are of maps, and target is '{target}'"):
        Distill(average="images", target=target)


@pytest.mark.parametrize("rule", [Copy, Distill])
def test_an_average_over_nothing_known_is_refused(rule: Any) -> None:
    with pytest.raises(UserError, match=rf"{rule.__name__}\.average is 'tokens'"):
        rule(average="tokens")
