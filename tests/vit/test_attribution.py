"""Rollout and relevance, against whole matrices and gradients of timm's own unfused attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from attention_transfer import AttentionTransfer, Copy, UserError, describe, relevance, rollout, student_like

Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]
Tapped = Callable[[nn.Module], list[str]]

FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers and RoPE": {"name": "vit_small_patch16_dinov3"},
    "bias in the mask": {"name": "beit_base_patch16_224"},
    "no class token": {"class_token": False, "global_pool": "avg"},
}


def first_row(model: nn.Module, tokens: int) -> Tensor:
    spec = describe(model)
    row = torch.zeros(tokens)
    if spec.class_token:
        row[0] = 1
    else:
        row[spec.prefix_tokens :] = 1 / (tokens - spec.prefix_tokens)
    return row


@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_is_the_product_of_whole_matrices(
    family: str, tiny_vit: Build, images: Tensor, unfused_maps: Maps, tapped: Tapped
) -> None:
    model = tiny_vit(**FAMILIES[family])
    maps = unfused_maps(model, images)
    product = torch.eye(maps[0].shape[-1])
    for block in maps:
        product = (0.5 * block.mean(dim=1) + 0.5 * torch.eye(block.shape[-1])) @ product
    expected = (first_row(model, product.shape[-1]) @ product)[:, describe(model).prefix_tokens :]
    torch.testing.assert_close(rollout(model, images), expected.view(4, 2, 2), atol=1e-5, rtol=1e-4)
    assert tapped(model) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", [None, 2, torch.tensor([0, 1, 2, 3])])
def test_relevance_is_that_of_the_maps_gradients(
    family: str, target: int | Tensor | None, tiny_vit: Build, images: Tensor, tapped: Tapped
) -> None:
    model = tiny_vit(**FAMILIES[family]).requires_grad_(False)
    plain: Any = copy.deepcopy(model)
    maps: list[Tensor] = []
    for block in plain.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
    logits = plain(images.clone().requires_grad_())
    labels = logits.argmax(dim=1) if target is None else torch.as_tensor(target).expand(4)
    gradients = torch.autograd.grad(logits[torch.arange(4), labels].sum(), maps)
    relevances = torch.eye(maps[0].shape[-1]).expand(4, -1, -1)
    for block, gradient in zip(maps, gradients, strict=True):
        relevances = relevances + (block * gradient).clamp_min(0).mean(dim=1) @ relevances
    tokens, prefix = relevances.shape[-1], describe(model).prefix_tokens
    expected = (first_row(model, tokens) @ (relevances - torch.eye(tokens)))[:, prefix:].view(4, 2, 2)
    with torch.no_grad():
        actual = relevance(model, images, target)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-3)
    assert tapped(model) == []


def test_maps_larger_than_a_tile(unfused_maps: Maps) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=40, patch_size=4, embed_dim=24, depth=2, num_heads=3)
    images = torch.randn(2, 3, 40, 40)
    maps = unfused_maps(model.eval(), images)
    eye = torch.eye(101)
    expected = ((maps[1].mean(1) + eye) / 2 @ (maps[0].mean(1) + eye) / 2)[:, 0, 1:].view(2, 10, 10)
    torch.testing.assert_close(rollout(model, images), expected, atol=1e-6, rtol=1e-4)


def test_torchvisions_attention_and_weights_gradients_stay(images: Tensor) -> None:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3
    ).eval()
    nn.init.normal_(model.heads.head.weight)
    found = relevance(model, images.expand(-1, 3, -1, -1), 1)
    assert found.shape == (4, 2, 2) and bool((found >= 0).all()) and float(found.sum()) > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_copied_student_has_a_rollout_but_no_relevance(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    teacher = tiny_vit()
    student = student_like(teacher, num_classes=3).eval()
    transfer = AttentionTransfer(teacher, student, [Copy()]).eval()
    torch.testing.assert_close(rollout(transfer, images, vit=student), rollout(teacher, images))
    held = tapped(student)
    with pytest.raises(UserError):
        relevance(transfer, images, vit=student)
    assert tapped(student) == held


def test_mistakes_are_said(tiny_vit: Build, images: Tensor) -> None:
    with pytest.raises(UserError, match="5 classes; choose from 0 to 4"):
        relevance(tiny_vit(), images, 5)
    model = tiny_vit(class_token=False, global_pool="avg")
    with pytest.raises(UserError, match="no class token"):
        rollout(model, images, query="class")
    with pytest.raises(UserError, match="no class token"):
        relevance(model, images, query="class")
