from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import Pairing, student_like

Array = NDArray[np.float64]
Build = Callable[..., Any]
SIGLIP = "vit_base_patch16_siglip_224"


def operands(model: Any, images: Tensor) -> list[dict[str, Array]]:
    """q, k and v of each block, (B, H, N, D), from the output of its qkv layer."""
    found: list[dict[str, Array]] = []
    heads = model.blocks[0].attn.num_heads

    def keep(module: Any, args: Any, qkv_BNC: Tensor) -> None:
        parts = qkv_BNC.double().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).numpy()
        found.append(dict(zip("qkv", parts, strict=True)))

    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.attn.qkv.register_forward_hook(keep)
    with torch.no_grad():
        plain(images)
    return found


def mean_rows(model: Any, images: Tensor, *, prefix: int) -> list[Array]:
    """The mean over the patches' queries of their rows of logits, (B, H, N) a layer."""
    rows = []
    for block, parts in zip(model.blocks, operands(model, images), strict=True):
        logits = np.einsum("bhnd,bhmd->bhnm", parts["q"], parts["k"]) / np.sqrt(parts["q"].shape[-1])
        position = getattr(block.attn, "rel_pos", None)
        if position is not None:
            logits = logits + position.get_bias().detach().double().numpy()
        rows.append(logits[:, :, prefix:].mean(axis=2))
    return rows


def pool_row(model: Any, images: Tensor) -> Array:
    """Logits of the attention-pool head of a timm model, (B, H, N), from the outputs of its layers."""
    seen: dict[str, Tensor] = {}
    plain = copy.deepcopy(model)
    for name in ("q", "kv"):
        layer = getattr(plain.attn_pool, name)
        layer.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output.double()}))
    with torch.no_grad():
        plain(images)
    heads = model.attn_pool.num_heads
    q = seen["q"].unflatten(-1, (heads, -1))[:, 0].numpy()
    k = seen["kv"].unflatten(-1, (2, heads, -1))[:, :, 0].numpy()
    return np.asarray(np.einsum("bhd,bnhd->bhn", q, k) / np.sqrt(q.shape[-1]))


# --- Distill(target=...) ---


@pytest.mark.parametrize(
    ("layers", "heads", "chosen_layers", "chosen_heads"),
    [(None, None, [0, 1, 2], [0, 1, 2]), ([-1], None, [2], [0, 1, 2]), ([0, 2], [0, -1], [0, 2], [0, 2])],
    ids=["all", "last layer", "some"],
)
@pytest.mark.parametrize("target", ["q", "k", "v"])
def test_distilled_operands_are_compared_as_they_are_and_summed_over_layers(
    target: Any,
    layers: Any,
    heads: Any,
    chosen_layers: list[int],
    chosen_heads: list[int],
    tiny_vit: Build,
    images: Tensor,
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    t, s = operands(teacher, images), operands(student, images)
    squares = [((t[i][target][:, chosen_heads] - s[i][target][:, chosen_heads]) ** 2).mean() for i in chosen_layers]
    expected = np.mean(squares)
    output = AttentionTransfer(teacher, student, [Distill(target=target, layers=layers, heads=heads)])(images)
    assert output.losses["distill"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("target", ["q", "k", "v"])
def test_operands_of_an_unequal_pair_are_compared_where_they_can_be_picked(
    target: Any, tiny_vit: Build, images: Tensor
) -> None:
    """A deeper teacher with registers and fewer heads of the same size: picked blocks, tokens and repeated heads."""
    teacher = tiny_vit(1, "vit_small_patch14_reg4_dinov2", depth=4, num_heads=2, embed_dim=16)
    student = tiny_vit(
        2, embed_dim=32, num_heads=4, depth=2, pretrained_cfg_overlay={"mean": (0.449,), "std": (0.226,)}
    )
    mean_t, std_t = (np.mean(teacher.pretrained_cfg[key]) for key in ("mean", "std"))
    theirs = images * (0.226 / std_t) + (0.449 - mean_t) / std_t
    t, s = operands(teacher, theirs.float()), operands(student, images)
    kept = [0, 5, 6, 7, 8]
    expected = np.mean(
        [((t[a][target][:, [0, 0, 1, 1]][:, :, kept] - s[b][target]) ** 2).mean() for a, b in ((1, 0), (3, 1))]
    )
    transfer = AttentionTransfer(teacher, student, [Distill(target=target)], pairing=Pairing(heads="mean"))
    assert transfer(images).losses["distill"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("target", "rows"), [("q", slice(0, 24)), ("k", slice(24, 48)), ("v", slice(48, 72))])
def test_in_the_last_block_only_the_distilled_operand_is_trained(
    target: Any, rows: slice, tiny_vit: Build, images: Tensor
) -> None:
    student = tiny_vit(2)
    AttentionTransfer(tiny_vit(1), student, [Distill(target=target, layers=[2])])(images).losses["distill"].backward()
    gradient = student.blocks[2].attn.qkv.weight.grad
    assert gradient[rows].abs().max() > 0
    gradient[rows] = 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("target", ["q", "k", "v"])
def test_a_student_with_its_teachers_weights_has_no_loss(target: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1)
    rules = [Distill(target=target)]
    assert AttentionTransfer(teacher, copy.deepcopy(teacher), rules)(images).losses["distill"].item() == 0


@pytest.mark.parametrize("target", ["q", "k", "v"])
def test_operands_of_other_head_dimensions_are_refused(target: Any, tiny_vit: Build) -> None:
    teacher, student = tiny_vit(1, embed_dim=48), tiny_vit(2)
    with pytest.raises(UserError, match=rf"target='{target}'\) compares .* head dimension 16 .* and 8 .* target='map'"):
        AttentionTransfer(teacher, student, [Distill(target=target)])


# --- Copy(parts="v") ---


@pytest.mark.parametrize("layers", [[2], [0], None])
def test_copied_values_are_those_of_the_teachers_whole_forward(layers: Any, tiny_vit: Build, images: Tensor) -> None:
    """Also those of the last layer, which the teacher leaves out where no rule needs them."""
    teacher, student = tiny_vit(1), tiny_vit(2)
    values = operands(teacher, images)
    plain = copy.deepcopy(student)
    for layer in [0, 1, 2] if layers is None else layers:

        def answer(module: Any, args: Any, own_BNC: Tensor, layer: int = layer) -> Tensor:
            theirs = torch.from_numpy(values[layer]["v"]).float().transpose(1, 2).flatten(2)
            return torch.cat([own_BNC[..., :48], theirs], dim=-1)

        plain.blocks[layer].attn.qkv.register_forward_hook(answer)
    actual = AttentionTransfer(teacher, student, [Copy(parts="v", layers=layers)])(images).logits
    torch.testing.assert_close(actual, plain(images), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(actual, student(images), atol=1e-2)


def test_values_can_be_copied_beside_maps_that_are_distilled(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    expected = AttentionTransfer(teacher, copy.deepcopy(student), [Copy(parts="v")])(images).logits
    output = AttentionTransfer(teacher, student, [Copy(parts="v"), Distill(), Distill(target="q")])(images)
    assert torch.equal(output.logits, expected)
    assert list(output.losses) == ["distill", "distill_2"]


def test_values_can_be_distilled_beside_maps_that_are_copied(tiny_vit: Build, images: Tensor) -> None:
    """The student's values are its own, and learn."""
    student = tiny_vit(2)
    transfer = AttentionTransfer(tiny_vit(1), student, [Copy(), Distill(target="v")])
    transfer(images).losses["distill"].backward()
    assert student.blocks[2].attn.qkv.weight.grad[48:].abs().max() > 0


@pytest.mark.parametrize("rule", [Copy(parts="v"), Copy(parts="q"), Copy(heads=[0]), Distill(target="k")])
def test_single_operands_of_another_grid_or_of_averaged_heads_are_refused(rule: Any, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="takes single operands or heads, which another patch grid or averaged heads"):
        AttentionTransfer(tiny_vit(1, img_size=12), tiny_vit(2), [rule])
    teacher, student = tiny_vit(1, num_heads=6, embed_dim=48), tiny_vit(2)
    with pytest.raises(UserError, match="takes single operands or heads"):
        AttentionTransfer(teacher, student, [rule], pairing=Pairing(heads="mean"))


# --- Guide(query=...) ---


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_small_patch14_reg4_dinov2", {}, 5),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_relpos_small_patch16_224", {}, 0),
        (SIGLIP, {}, 0),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_query_guides_the_mean_of_the_patches_rows(
    reduction: Any, name: str, options: Any, prefix: int, tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, name, **options), tiny_vit(2, name, **options)
    t, s = (mean_rows(model, images, prefix=prefix) for model in (teacher, student))
    expected = np.mean([((t[i][:, :2] - s[i][:, :2]) ** 2).sum(-1).mean() for i in (1, 2)])
    keys = prefix + 4 if reduction == "mean" else 1
    rule = Guide(query="mean", layers=2, heads=[0, 1], reduction=reduction)
    loss = AttentionTransfer(teacher, student, [rule])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected / keys, rel=1e-4)


@pytest.mark.parametrize("heads", [None, [1]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_pool_query_guides_the_row_of_the_pooling_head(
    reduction: Any, heads: Any, tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, SIGLIP), tiny_vit(2, SIGLIP)
    t, s = pool_row(teacher, images), pool_row(student, images)
    squares = ((t - s) ** 2)[:, [0, 1, 2] if heads is None else heads]
    expected = squares.sum(-1).mean() / (4 if reduction == "mean" else 1)
    rule = Guide(query="pool", heads=heads, reduction=reduction)
    loss = AttentionTransfer(teacher, student, [rule])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_pool_and_blocks_can_be_guided_together_and_are_trained(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1, SIGLIP), tiny_vit(2, SIGLIP)
    rules = [Guide(query="pool"), Guide(query="mean", layers=[0]), Distill(layers=[1])]
    losses = AttentionTransfer(teacher, student, rules)(images).losses
    assert list(losses) == ["guide", "guide_2", "distill"]
    for rule, name in zip(rules, losses, strict=True):
        alone = AttentionTransfer(teacher, copy.deepcopy(student), [rule])(images).losses
        assert losses[name].item() == pytest.approx(next(iter(alone.values())).item(), rel=1e-6)
    losses["guide"].backward()
    assert student.attn_pool.latent.grad.abs().max() > 0
    assert student.attn_pool.kv.weight.grad[24:].abs().max() == 0  # rows of the values


def test_a_copied_student_has_no_loss_at_its_pooling_head(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1, SIGLIP)
    transfer = AttentionTransfer(teacher, copy.deepcopy(teacher), [Guide(query="pool"), Guide(query="mean")])
    assert [loss.item() for loss in transfer(images).losses.values()] == pytest.approx([0, 0], abs=1e-12)


def test_a_pooling_head_of_hugging_face_guides_that_of_timm(tiny_vit: Build, images: Tensor) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    torch.manual_seed(1)
    model: Any = transformers.SiglipVisionModel(config)
    teacher = model.eval()
    student = tiny_vit(2, SIGLIP)
    with torch.no_grad():
        hidden = teacher(images).last_hidden_state
        head = (getattr(teacher, "vision_model", None) or teacher).head
        weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        q = (head.probe[0, 0] @ weights[0].T + biases[0]).unflatten(-1, (3, 8))
        k = (hidden @ weights[1].T + biases[1]).unflatten(-1, (3, 8))
    theirs = torch.einsum("hd,bnhd->bhn", q, k).double().numpy() / np.sqrt(8)
    expected = ((theirs - pool_row(student, images)) ** 2).mean()
    loss = AttentionTransfer(teacher, student, [Guide(query="pool")])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_pooling_row_is_resampled_to_another_grid(tiny_vit: Build) -> None:
    """From 3×3 patches to 2×2: a triangle of width 3/2 about each new patch, along both sides."""
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    teacher, student = tiny_vit(1, SIGLIP, img_size=12), tiny_vit(2, SIGLIP)
    larger = torch.nn.functional.interpolate(images, size=(12, 12), mode="bicubic", antialias=True)
    near, far = 1 - 0.25 / 1.5, 1 - 0.75 / 1.5
    side = np.array([[near, far, 0], [0, far, near]]) / (near + far)
    theirs = pool_row(teacher, larger).reshape(2, 3, 3, 3)
    resampled = np.einsum("ip,jq,bhpq->bhij", side, side, theirs).reshape(2, 3, 4)
    expected = ((resampled - pool_row(student, images)) ** 2).mean()
    loss = AttentionTransfer(teacher, student, [Guide(query="pool")])(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("heads", ["same", "mean"])
def test_the_pooling_heads_of_an_unequal_pair_are_averaged(heads: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1, SIGLIP, num_heads=6), tiny_vit(2, SIGLIP)
    rules, pairing = [Guide(query="pool")], Pairing(heads=heads)
    if heads == "same":
        with pytest.raises(UserError, match="heads 6 but the student has 3"):
            AttentionTransfer(teacher, student, rules, pairing=pairing)
        return
    averaged = pool_row(teacher, images).reshape(4, 3, 2, 4).mean(axis=2)
    expected = ((averaged - pool_row(student, images)) ** 2).mean()
    loss = AttentionTransfer(teacher, student, rules, pairing=pairing)(images).losses["guide"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("other", [[], [Distill()]])
def test_unequal_pooling_heads_that_nothing_matches_are_refused(other: Any, tiny_vit: Build) -> None:
    teacher, student = tiny_vit(1, SIGLIP, num_heads=6), tiny_vit(2, SIGLIP)
    with pytest.raises(UserError):
        AttentionTransfer(teacher, student, [Guide(query="pool"), *other], pairing=Pairing(heads="match"))


@pytest.mark.parametrize("options", [{"reg_tokens": 2}, {"class_token": True}], ids=["registers", "class token"])
@pytest.mark.parametrize("size", [8, 12])
def test_a_pooling_head_that_leaves_prefix_tokens_out_can_be_guided(
    size: int, options: Any, tiny_vit: Build, images: Tensor
) -> None:
    """As `vit_so150m_patch16_reg4_map_256` does: it pools the patches alone."""
    teacher = tiny_vit(1, SIGLIP, img_size=size, **options)
    student = tiny_vit(2, SIGLIP, **(options if size != 8 else {}))
    loss = AttentionTransfer(teacher, student, [Guide(query="pool")])(images).losses["guide"]
    if size == 8:
        expected = ((pool_row(teacher, images) - pool_row(student, images)) ** 2).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_siglip_is_refused_by_default_and_the_other_queries_are_named(tiny_vit: Build) -> None:
    teacher = tiny_vit(1, SIGLIP)
    with pytest.raises(UserError) as caught:
        AttentionTransfer(teacher, student_like(teacher, num_classes=5), [Guide()])
    messages = str(caught.value).splitlines()
    assert len(messages) == 2
    for role, message in zip(("teacher", "student"), messages, strict=True):
        assert message.startswith(f"Guide needs a class token, which {role} {SIGLIP} does not have")
        assert message.endswith('choose query="mean" or query="pool"')


def test_models_with_no_pooling_head_are_told_of_the_mean_only(tiny_vit: Build) -> None:
    teacher, student = (tiny_vit(seed, class_token=False, global_pool="avg") for seed in (1, 2))
    with pytest.raises(UserError, match='choose query="mean"') as caught:
        AttentionTransfer(teacher, student, [Guide()])
    assert "pool" not in str(caught.value)


def test_the_pool_query_needs_a_pooling_head_on_both_sides_and_no_layers(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=r"needs an attention-pool head, which student vit_tiny\w+ does not have"):
        AttentionTransfer(tiny_vit(1, SIGLIP), tiny_vit(2, class_token=False, global_pool="avg"), [Guide(query="pool")])
    with pytest.raises(UserError, match=r"which teacher vit_tiny\w+ does not have"):
        AttentionTransfer(tiny_vit(1, class_token=False, global_pool="avg"), tiny_vit(2, SIGLIP), [Guide(query="pool")])
    with pytest.raises(UserError, match="which has no layers; leave layers out"):
        AttentionTransfer(tiny_vit(1, SIGLIP), tiny_vit(2, SIGLIP), [Guide(query="pool", layers=[0])])


@pytest.mark.parametrize("rule", [Distill(target="q"), Distill(target="v"), Guide(query="mean")])
def test_gradients_under_checkpointing_are_those_without(rule: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher, gradients = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        transfer = AttentionTransfer(teacher, student, [rule, Copy(parts="v", layers=[1])]).train()
        output = transfer(images)
        output.total(output.logits.square().sum()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
