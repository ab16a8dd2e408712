from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.attention import AttentionCall
from attention_transfer.errors import UserErrors
from attention_transfer.transfer import AttentionTransfer, Guide
from attention_transfer.transfer.rule import CallPair

Build = Callable[..., Any]


def class_rows(model: Any, images: Tensor) -> list[NDArray[np.float64]]:
    """Logits of the class token's query, (B, H, N) a layer, from the output of each block's qkv layer."""
    rows = []

    def keep(module: Any, args: Any, qkv_BNC: Tensor) -> None:
        q, k, _ = qkv_BNC.double().reshape(*qkv_BNC.shape[:2], 3, 3, -1).numpy().transpose(2, 0, 3, 1, 4)
        rows.append(np.einsum("bhd,bhmd->bhm", q[:, :, 0], k) / np.sqrt(q.shape[-1]))

    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.attn.qkv.register_forward_hook(keep)
    with torch.no_grad():
        plain(images)
    return rows


@pytest.mark.parametrize(
    ("layers", "heads", "chosen_layers", "chosen_heads"),
    [(None, None, [0, 1, 2], [0, 1, 2]), ([-1], None, [2], [0, 1, 2]), (2, [0, 1], [1, 2], [0, 1])],
    ids=["all", "last layer", "some"],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_is_the_distance_of_the_class_rows_summed_over_layers(
    reduction: Any,
    layers: Any,
    heads: Any,
    chosen_layers: list[int],
    chosen_heads: list[int],
    tiny_vit: Build,
    images: Tensor,
) -> None:
    teacher, student = tiny_vit(1, embed_dim=48), tiny_vit(2)
    squares = [
        (t[:, chosen_heads] - s[:, chosen_heads]) ** 2
        for t, s in zip(class_rows(teacher, images), class_rows(student, images), strict=True)
    ]
    keys = squares[0].shape[-1]
    rows = [squares[layer].sum(-1).mean() for layer in chosen_layers]
    expected = np.mean(rows) / (keys if reduction == "mean" else 1)
    rule = Guide(layers=layers, heads=heads, reduction=reduction)
    loss = AttentionTransfer(teacher, student, [rule])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_student_with_its_teachers_weights_has_no_loss(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit()
    student = copy.deepcopy(teacher)
    transfer = AttentionTransfer(teacher, student, [Guide()])
    assert transfer(images).losses["guide"].item() == 0
    with torch.no_grad():
        student.blocks[0].attn.qkv.weight.mul_(1.1)
    assert transfer(images).losses["guide"].item() > 0


def test_other_queries_than_the_class_tokens_are_free(tiny_vit: Build, images: Tensor) -> None:
    """In the last block the patches' queries reach no class row, so the loss may not train them."""
    student = tiny_vit(2)
    seen: list[Tensor] = []
    student.blocks[2].attn.q_norm.register_forward_hook(lambda module, args, output: seen.append(output))
    loss = AttentionTransfer(tiny_vit(1), student, [Guide(layers=[2])])(images).losses["guide"]
    (gradient,) = torch.autograd.grad(loss, seen[0])
    assert gradient[:, :, 0].abs().max() > 0
    assert gradient[:, :, 1:].abs().max() == 0


def test_models_without_a_class_token_are_refused_by_name(tiny_vit: Build) -> None:
    teacher, student = (tiny_vit(seed, class_token=False, global_pool="avg") for seed in (1, 2))
    with pytest.raises(UserErrors, match="teacher vit_tiny_patch16_224 does not have") as caught:
        AttentionTransfer(teacher, student, [Guide()])
    assert "student vit_tiny_patch16_224 does not have" in str(caught.value)


def test_gradients_under_checkpointing_are_those_without(tiny_vit: Build, images: Tensor) -> None:
    teacher, gradients = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        output = AttentionTransfer(teacher, student, [Guide(weight=1.0)]).train()(images)
        output.total(output.logits.square().sum()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("options", [{}, {"on": "maps"}, {"heads": (1,)}, {"reduction": "sum"}])
def test_rows_of_all_layers_are_compared_in_one_where_they_have_one_shape(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over layers of what each has by itself."""
    rule = Guide(**options)
    compared: list[int] = []
    one_layer = Guide.layer_loss

    def counted(rule: Guide, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        compared.append(len(student.k))
        return one_layer(rule, student, teacher)

    monkeypatch.setattr(Guide, "layer_loss", counted)

    def pair(keys: int) -> CallPair:
        q, k = torch.randn(2, 3, 1, 4), torch.randn(2, 3, keys, 4)
        sides = (AttentionCall.of(q, k).as_logits(), AttentionCall.of(k[:, :, :1], k).as_logits())
        return CallPair(*sides)

    for keys, calls in (((5, 5, 5), [6]), ((5, 5, 7), [2, 2, 2])):
        pairs = [pair(number) for number in keys]
        expected = torch.stack([one_layer(rule, *each) for each in pairs]).mean()
        compared.clear()
        torch.testing.assert_close(rule.loss(pairs), expected)
        assert compared == calls
