"""Schedule and parameter groups."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from attention_transfer.engine.optimiser import adamw
from attention_transfer.training import ResolvedRecipe, Supervised, parameter_groups, warmup_cosine
from attention_transfer.transfer import AttentionTransfer, Copy


def test_the_schedule_rises_linearly_then_falls_to_its_floor() -> None:
    factors = [warmup_cosine(step, steps=101, warmup=10, floor=0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)  # half-way down the cosine
    assert factors[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))


def test_a_schedule_without_warm_up_starts_at_its_peak() -> None:
    assert warmup_cosine(0, steps=5, warmup=0, floor=0.0) == 1.0


def test_matrices_decay_and_biases_norms_and_tokens_do_not(vit: nn.Module) -> None:
    objective = Supervised(AttentionTransfer(None, vit))
    groups = parameter_groups(objective, lr=1.0, decay=0.5, layers=1.0)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(vit.parameters()))
    for name, parameter in vit.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 or name in ("cls_token", "pos_embed") else 0.5
        assert decay[id(parameter)] == expected, name


def test_layer_decay_slows_early_blocks(vit: nn.Module) -> None:
    objective = Supervised(AttentionTransfer(None, vit))
    groups = parameter_groups(objective, lr=1.0, decay=0.5, layers=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    by_name = {name: rate[id(p)] for name, p in vit.named_parameters()}
    assert by_name["head.weight"] == 1.0
    assert by_name["blocks.1.mlp.fc1.weight"] == pytest.approx(by_name["blocks.2.mlp.fc1.weight"] / 2)
    assert by_name["patch_embed.proj.weight"] == pytest.approx(by_name["blocks.0.mlp.fc1.weight"] / 2)


def test_parameters_outside_the_network_are_trained_too(vit: nn.Module) -> None:
    objective = Supervised(AttentionTransfer(None, vit))
    objective.extra = nn.Linear(2, 2)
    groups = parameter_groups(objective, lr=1.0, decay=0.5, layers=1.0)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert (decay[id(objective.extra.weight)], decay[id(objective.extra.bias)]) == (0.5, 0.0)


def test_rows_that_copying_leaves_unused_do_not_decay(tiny_vit: Any) -> None:
    student = tiny_vit(2)
    objective = Supervised(AttentionTransfer(tiny_vit(1), student, [Copy(layers=[1])]))
    optimizer = adamw(objective, ResolvedRecipe(lr=0.1, weight_decay=0.5))
    before = [block.attn.qkv.weight.detach().clone() for block in student.blocks]
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ratios = [block.attn.qkv.weight.detach() / old for block, old in zip(student.blocks, before, strict=True)]
    lr = optimizer.param_groups[0]["lr"]
    decayed = torch.full((24, 24), 1 - lr * 0.5)
    torch.testing.assert_close(ratios[0], decayed.repeat(3, 1))
    torch.testing.assert_close(ratios[1], torch.cat([torch.ones(48, 24), decayed]))


def test_layer_decay_serves_models_that_timm_did_not_make() -> None:
    vit = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )
    groups = parameter_groups(Supervised(AttentionTransfer(None, vit)), lr=1.0, decay=0.1, layers=0.5)
    names = {id(p): name for name, p in vit.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates["class_token"] == (0.125, 0.0)
    assert rates["conv_proj.weight"] == (0.125, 0.1)
    assert rates["encoder.layers.encoder_layer_0.mlp.0.weight"] == (0.25, 0.1)
    assert rates["encoder.layers.encoder_layer_1.mlp.0.bias"] == (0.5, 0.0)
    assert rates["heads.head.weight"] == (1.0, 0.1)
    assert len(rates) == len(names)
