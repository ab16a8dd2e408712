from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, capture

Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]
Tapped = Callable[[nn.Module], list[str]]

FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "q/k norm": {"qk_norm": True},
    "LayerScale": {"name": "deit3_small_patch16_224"},
    "registers": {"name": "vit_small_patch14_reg4_dinov2"},
    "registers and RoPE": {"name": "vit_small_patch16_dinov3"},
    "RoPE and gated MLP": {"name": "eva02_tiny_patch14_224"},
    "pre-norm": {"name": "vit_base_patch16_clip_224"},
    "bias in the mask": {"name": "beit_base_patch16_224"},
    "another bias in the mask": {"name": "vit_relpos_small_patch16_224"},
    "attention-pool head": {"name": "vit_base_patch16_siglip_224"},  # it makes a further call outside the blocks
}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_timms_own_unfused_attention(
    family: str, tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    model = tiny_vit(**FAMILIES[family])
    with capture(model) as calls, torch.no_grad():
        model(images)
    expected = unfused_maps(model, images)
    assert [call.layer for call in calls] == [0, 1, 2]
    for call, maps in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.maps(), maps, atol=1e-5, rtol=0)
        torch.testing.assert_close(call.logits().softmax(-1), maps, atol=1e-5, rtol=0)
        if call.tokens.class_token:
            torch.testing.assert_close(call.class_logits().softmax(-1), maps[:, :, 0], atol=1e-5, rtol=0)
        assert call.v.shape == call.q.shape == (4, 3, maps.shape[-1], 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_is_bitwise_the_same_and_nothing_stays_on_the_model(
    family: str, tiny_vit: Build, images: Tensor, tapped: Tapped
) -> None:
    model = tiny_vit(**FAMILIES[family])
    expected = model(images)
    with capture(model) as calls:
        actual = model(images)
    assert len(calls) == 3
    assert torch.equal(actual, expected)
    assert tapped(model) == []


def test_dropout_draws_the_same_random_numbers_under_capture(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit(attn_drop_rate=0.3, proj_drop_rate=0.3, drop_path_rate=0.3).train()
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    with capture(model):
        actual = model(images)
    assert torch.equal(actual, expected)
    torch.manual_seed(2)
    assert not torch.equal(model(images), expected)


@pytest.mark.parametrize(("layers", "expected"), [(None, [0, 1, 2]), (2, [1, 2]), ([0], [0]), ([-1, 0], [0, 2])])
def test_only_the_chosen_layers_are_seen(
    layers: Any, expected: list[int], tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    model = tiny_vit()
    with capture(model, layers=layers) as calls:
        model(images)
    assert [call.layer for call in calls] == expected
    maps = unfused_maps(model, images)
    for call in calls:
        torch.testing.assert_close(call.maps(), maps[call.layer], atol=1e-5, rtol=0)


def test_a_layer_that_does_not_exist_is_refused_with_both_bounds(tiny_vit: Build, tapped: Tapped) -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match=r"\[3\] do not exist; choose from -3 to 2"), capture(model, layers=[3]):
        pass
    assert tapped(model) == []


def test_an_exception_leaves_nothing_on_the_model(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    model = tiny_vit()
    expected = model(images)
    with pytest.raises(KeyError), capture(model):
        model(images)
        raise KeyError
    assert tapped(model) == []
    with pytest.raises(AssertionError, match="height"), capture(model):
        model(images[:, :, :5])  # an exception from within the model
    assert tapped(model) == []
    assert torch.equal(model(images), expected)


def test_several_forwards_are_collected_in_order(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit()
    with capture(model, layers=[0]) as calls:
        model(images[:1])
        model(images[1:])
    assert [call.q.shape[0] for call in calls] == [1, 3]
    model(images)
    assert len(calls) == 2


def test_captures_nest(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    model = tiny_vit()
    expected = model(images)
    with capture(model) as outer:
        with capture(model, layers=[1]) as inner:
            assert torch.equal(model(images), expected)
        assert ([c.layer for c in outer], [c.layer for c in inner]) == ([0, 1, 2], [1])
        assert torch.equal(outer[1].q, inner[0].q)
        model(images)
    assert (len(outer), len(inner)) == (6, 1)
    assert tapped(model) == []


def test_a_deep_copy_made_inside_is_not_recorded_and_runs_its_own_weights(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit()
    with capture(model) as calls:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        output = twin(images)
        assert calls == []
    fresh = tiny_vit(seed=3)
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(output, fresh(images))
    assert not torch.equal(output, model(images))


def test_a_copied_model_can_be_captured_itself(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit()
    with capture(model) as calls:
        twin = copy.deepcopy(model)
        with capture(twin) as twins_calls:
            twin(images)
    assert (len(calls), len(twins_calls)) == (0, 3)


def test_a_forward_that_another_library_put_there_is_back_afterwards(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit()
    attention = model.blocks[0].attn
    original = attention.forward

    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * original(*args, **kwargs)  # type: ignore[no-any-return]

    attention.forward = theirs
    expected = model(images)
    with capture(model) as calls:
        assert torch.equal(model(images), expected)
    assert len(calls) == 3
    assert attention.__dict__["forward"] is theirs


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpointing_are_those_without(
    use_reentrant: bool, tiny_vit: Build, images: Tensor, reentrant: Callable[[bool], None]
) -> None:
    reentrant(use_reentrant)
    plain, model = tiny_vit().train(), tiny_vit().train()
    plain(images).square().sum().backward()
    model.set_grad_checkpointing(True)
    with capture(model):
        model(images).square().sum().backward()
    for expected, actual in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(expected.grad, actual.grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_block_that_checkpointing_runs_again_is_recorded_once(
    use_reentrant: bool, tiny_vit: Build, images: Tensor, reentrant: Callable[[bool], None]
) -> None:
    reentrant(use_reentrant)
    model = tiny_vit().train()
    model.set_grad_checkpointing(True)
    with capture(model) as calls:
        model(images).sum().backward()  # the backward pass runs each block again; that is no forward of the model
    assert [call.layer for call in calls] == [0, 1, 2]


def test_gradients_flow_through_captured_operands(tiny_vit: Build, images: Tensor, unfused_maps: Maps) -> None:
    model = tiny_vit()
    with capture(model, layers=[1]) as calls:
        model(images)
    calls[0].maps().square().sum().backward()
    assert model.blocks[1].attn.qkv.weight.grad.abs().max() > 0
    assert model.blocks[0].mlp.fc1.weight.grad.abs().max() > 0
    assert model.blocks[2].attn.qkv.weight.grad is None


def test_unfused_attention_is_an_error_and_not_an_empty_list(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    model = tiny_vit()
    model.blocks[1].attn.fused_attn = False
    with pytest.raises(UserError, match=r"built without fused attention.*set_fused_attn\(True\)"), capture(model):
        model(images)
    assert tapped(model) == []


def test_attention_that_is_taken_off_its_kernel_meanwhile_is_an_error_too(
    tiny_vit: Build, images: Tensor, tapped: Tapped
) -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match="block 1 made 0 calls"), capture(model):
        model.blocks[1].attn.fused_attn = False
        model(images)
    assert tapped(model) == []


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), nn.Sequential, lambda: timm.create_model("resnet18")])
def test_a_model_without_such_attention_is_refused(build: Callable[[], nn.Module]) -> None:
    model = build()
    with pytest.raises(UserError, match=f"{type(model).__name__} has no supported attention"), capture(model):
        pass


def test_a_compiled_model_is_captured_without_a_graph_break(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit(depth=2)
    with capture(model) as eager:
        expected = model(images)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with capture(model) as calls:
        actual = compiled(images)
    torch.testing.assert_close(actual, expected)
    assert len(calls) == 2
    for call, other in zip(calls, eager, strict=True):
        torch.testing.assert_close(call.maps(), other.maps())


def test_a_call_keeps_scale_and_mask_in_its_logits() -> None:
    q, k = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[3.0], [4.0]]]])
    call = AttentionCall(q, k, k, torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 0.5, 0)
    assert call.logits().tolist() == [[[[1.5, 3.0], [3.0, 4.0]]]]
    assert call.class_logits().tolist() == [[[1.5, 3.0]]]
    torch.testing.assert_close(call.maps(), torch.tensor([[[[1.5, 3.0], [3.0, 4.0]]]]).softmax(-1))
