"""Test-time registers: a planted neuron is found, and its activation is moved to one more token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from attention_transfer import UserError, capture, describe, load_vit
from attention_transfer.evaluation import attention_profile
from attention_transfer.vit import (
    NoArtefacts,
    RegisterNeurons,
    add_register,
    check_repairable,
    check_transfer,
    find_register_neurons,
    is_repaired,
    remove_register,
    save_vit,
    student_like,
)

Build = Callable[..., Any]
SIZES = {"img_size": 24, "depth": 4}
BLOCK, UNIT, PATCH = 1, 7, 20


@pytest.fixture
def planted(tiny_vit: Build) -> Any:
    """A network in which one unit fires at one patch, whose output it makes huge, and the next block attends to it."""
    model = tiny_vit(**SIZES)
    with torch.no_grad():
        direction = torch.zeros(24)
        direction[3] = 1
        model.pos_embed[0, 1 + PATCH] += 30 * direction
        mlp = model.blocks[BLOCK].mlp
        mlp.fc1.weight[UNIT] = 20 * direction
        mlp.fc1.bias[UNIT] = -25
        mlp.fc2.weight[:, UNIT] = 0
        mlp.fc2.weight[4, UNIT] = 5
    return model


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(6, 1, 24, 24, generator=torch.Generator().manual_seed(1))


def norms(model: Any, batch: Tensor, layer: int) -> Tensor:
    """Of the patches in a block's output, as multiples of their median."""
    seen: list[Tensor] = []
    handle = model.blocks[layer].register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        model(batch)
    handle.remove()
    found: Tensor = seen[0][:, model.num_prefix_tokens :].norm(dim=-1)
    relative: Tensor = found / found.median(dim=1, keepdim=True).values
    return relative


def test_the_planted_neuron_is_found(planted: Any, batch: Tensor) -> None:
    assert (norms(planted, batch, BLOCK)[:, PATCH] > 3).all()
    found = find_register_neurons(planted, [batch[:4], batch[4:]], count=1)
    assert found.units == {BLOCK: (UNIT,)}
    assert found.block == BLOCK
    assert found.artefacts == pytest.approx((norms(planted, batch, BLOCK) > 3).sum().item() / 6)
    assert all(not hooks for hooks in (module._forward_hooks for module in planted.modules()))


def test_the_artefact_is_gone_from_the_patches(planted: Any, batch: Tensor) -> None:
    before = norms(planted, batch, BLOCK)[:, PATCH].mean()
    repaired = copy.deepcopy(planted)
    add_register(repaired, RegisterNeurons({BLOCK: (UNIT,)}, BLOCK, 1.0))
    assert norms(repaired, batch, BLOCK)[:, PATCH].mean() < 0.5 * before
    spec = describe(repaired)
    assert spec.tokens.prefix == ("class", "register")
    assert (spec.grid, spec.sequence) == ((6, 6), 38)
    with capture(repaired) as calls:
        repaired(batch)
    assert calls[-1].maps().shape == (6, 3, 38, 38)


def test_it_is_timms_network_with_a_register_and_moved_units(planted: Any, batch: Tensor) -> None:
    """An independent reference: timm's own register, and a hook that moves the unit in plain loops."""
    sizes = {"patch_size": 4, "in_chans": 1, "embed_dim": 24, "num_heads": 3, "num_classes": 5, **SIZES}
    reference = timm.create_model("vit_tiny_patch16_224", reg_tokens=1, **sizes).eval()
    state = dict(planted.state_dict())
    state["reg_token"] = torch.zeros(1, 1, 24)
    old = state["pos_embed"]
    state["pos_embed"] = torch.cat([old[:, :1], torch.zeros(1, 1, 24), old[:, 1:]], dim=1)
    reference.load_state_dict(state)

    def move(module: Any, given: Any, output: Tensor) -> Tensor:
        moved = output.clone()
        for image in range(len(output)):
            moved[image, 1, UNIT] = max(output[image, token, UNIT] for token in range(output.shape[1]))
            for token in range(2, output.shape[1]):
                moved[image, token, UNIT] = 0
        return moved

    reference.blocks[BLOCK].mlp.act.register_forward_hook(move)
    add_register(planted, RegisterNeurons({BLOCK: (UNIT,)}, BLOCK, 1.0))
    with torch.no_grad():
        torch.testing.assert_close(planted(batch), reference(batch))
        torch.testing.assert_close(copy.deepcopy(planted)(batch), reference(batch))


def test_without_position_of_the_class_token_and_beside_other_registers(tiny_vit: Build, batch: Tensor) -> None:
    model = tiny_vit(**SIZES, reg_tokens=2, no_embed_class=True)
    add_register(model, RegisterNeurons({0: (1, 2), 2: (0,)}, 2, 1.0))
    assert describe(model).tokens.prefix == ("class", "register", "register", "register")
    model(batch).sum().backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None


def test_loaded_with_a_repair_and_never_saved(planted: Any, batch: Tensor, tmp_path: Path) -> None:
    save_vit(planted, tmp_path / "model")
    neurons = find_register_neurons(planted, [batch], count=1)
    model = load_vit(str(tmp_path / "model"), repair=neurons)
    add_register(planted, neurons)
    torch.testing.assert_close(model(batch), planted(batch))
    with pytest.raises(UserError, match="no format has a place for a test-time register"):
        save_vit(model, tmp_path / "other")


def test_what_can_not_be_repaired(tiny_vit: Build, planted: Any, batch: Tensor) -> None:
    flat = tiny_vit(**SIZES)
    with torch.no_grad():
        for block in flat.blocks:  # each output is its input, and no patch stands out
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
    with pytest.raises(NoArtefacts, match="there is nothing to repair; leave repair out"):
        find_register_neurons(flat, [batch * 0.01])
    with pytest.raises(UserError, match="give at least one batch"):
        find_register_neurons(planted, [])
    with pytest.raises(UserError, match="give at least 1 register neuron"):
        find_register_neurons(planted, [batch], count=0)
    with pytest.raises(UserError, match=r"has no hidden units 9\.0, 1\.5000; find register neurons on it itself"):
        add_register(planted, RegisterNeurons({9: (0,), 1: (5000,)}, 1, 1.0))
    relative = tiny_vit(name="vit_relpos_small_patch16_224", img_size=24)
    with pytest.raises(UserError, match="can't be repaired"):
        find_register_neurons(relative, [batch])
    with pytest.raises(UserError, match="can't be repaired"):
        check_repairable(relative)
    with pytest.raises(UserError, match="has no test-time register to take off"):
        remove_register(planted)


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2}, {"reg_tokens": 1, "no_embed_class": True}])
def test_what_was_added_is_taken_off_again(settings: dict[str, Any], tiny_vit: Build, batch: Tensor) -> None:
    model = tiny_vit(**SIZES, **settings)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    spec, before = describe(model), model(batch)
    for units in ({0: (1, 2)}, {0: (3,), 1: (4,)}):
        add_register(model, RegisterNeurons(units, 1, 1.0))
    once = copy.deepcopy(model)
    remove_register(once)
    alone = tiny_vit(**SIZES, **settings)
    add_register(alone, RegisterNeurons({0: (1, 2)}, 1, 1.0))
    assert torch.equal(once(batch), alone(batch))
    assert is_repaired(once)
    remove_register(once)
    assert not is_repaired(once)
    assert describe(once) == spec
    assert once.state_dict().keys() == state.keys()
    assert all(torch.equal(once.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(once(batch), before)


def test_a_test_time_register_is_no_component_that_a_student_should_have(planted: Any) -> None:
    student = student_like(planted, num_classes=5)
    add_register(planted, RegisterNeurons({BLOCK: (UNIT,)}, BLOCK, 1.0))
    report = check_transfer(planted, student)
    assert (report.warnings, report.problems) == ((), ())
    assert any("rows are renormalised" in note for note in report.notes)


def test_sinks_of_the_planted_artefact(planted: Any) -> None:
    """The profile's own measure, on images: no patch is an artefact any more."""
    from attention_transfer.data.digits import digits

    images = [image.resize((24, 24)) for image in map(digits().test.images.__getitem__, range(4))]
    before = attention_profile(planted, images)
    add_register(planted, RegisterNeurons({BLOCK: (UNIT,)}, BLOCK, 1.0))
    after = attention_profile(planted, images)
    assert before[BLOCK].high_norm >= 1 / 36
    assert after[BLOCK].high_norm < before[BLOCK].high_norm
