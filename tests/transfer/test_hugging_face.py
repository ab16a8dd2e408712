"""Teachers and students of Hugging Face transformers, against maps that transformers itself forms."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import student_like

transformers: Any = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")

Build = Callable[..., Any]
Tapped = Callable[[nn.Module], list[str]]

LAYERS, HEADS, TARGETS = 3, 3, torch.tensor([0, 1, 2, 3])
SIZES = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_size": 24, "intermediate_size": 48}
RULES: dict[str, list[Any]] = {
    "copy": [Copy()],
    "distill": [Distill()],
    "guide": [Guide()],
    "all": [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2])],
}


def hf(seed: int, kind: str = "ViTForImageClassification", **overrides: Any) -> Any:
    """A tiny model in train mode, with weights so large that a wrong map would not look right."""
    torch.manual_seed(seed)
    config = getattr(transformers, kind).config_class(
        image_size=8, patch_size=4, num_channels=1, num_labels=5, **{**SIZES, **overrides}
    )
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.train()


def unfused(model: Any) -> Any:
    """A double-precision copy that forms its maps."""
    plain = copy.deepcopy(model).double()
    plain.set_attn_implementation("eager")
    return plain


def maps_of(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Maps of each block, (B, H, N, N), with gradients, of a model that forms them."""
    maps: tuple[Tensor, ...] = model(images.double(), output_attentions=True).attentions
    return maps


def class_rows(model: Any, images: Tensor) -> list[Tensor]:
    """The class token's attention logits of each block, (B, H, N), from its linear layers."""
    rows: list[Tensor] = []

    def remember(attention: Any, args: Any, kwargs: Any) -> None:
        x_BNC = args[0] if args else kwargs["hidden_states"]
        q = attention.q_proj(x_BNC[:, :1]).unflatten(-1, (HEADS, -1))[:, 0]
        k = attention.k_proj(x_BNC).unflatten(-1, (HEADS, -1))
        rows.append(torch.einsum("bhd,bnhd->bhn", q, k) / q.shape[-1] ** 0.5)

    for layer in model.vit.layers:
        layer.attention.register_forward_pre_hook(remember, with_kwargs=True)
    model(images.double())
    return rows


def with_maps(student: Any, maps: dict[int, Tensor]) -> Any:
    """Make the blocks of a model that forms its maps use these in their place."""
    for index, layer in enumerate(student.vit.layers):
        if index in maps:
            layer.attention.forward = given(layer.attention, maps[index])
    return student


def given(attention: Any, maps: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        v = attention.v_proj(hidden_states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return attention.o_proj((maps @ v).transpose(1, 2).flatten(2)), maps

    return forward


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name; parameters without a gradient count as zero."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def step(transfer: AttentionTransfer, images: Tensor) -> Any:
    """Run a step forward and backward."""
    output = transfer(images)
    output.total(F.cross_entropy(output.logits, TARGETS)).backward()
    return output


def assert_same(student: nn.Module, reference: nn.Module) -> None:
    actual, expected = gradients(student), gradients(reference)
    assert any(gradient.abs().max() > 0 for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(actual[name].double(), expected[name], atol=2e-4, rtol=2e-4, msg=name)


# Against transformers' own maps


@pytest.mark.parametrize("layers", [[0, 1, 2], [1]])
def test_copy_has_the_logits_and_gradients_of_the_teachers_maps(layers: list[int], images: Tensor) -> None:
    teacher, student = hf(1), hf(2)
    theirs = maps_of(unfused(teacher.eval()), images)
    reference = with_maps(unfused(student), {layer: theirs[layer].detach() for layer in layers})
    expected = reference(images.double()).logits
    F.cross_entropy(expected, TARGETS).backward()
    alone = student(images).logits
    output = step(AttentionTransfer(teacher, student, [Copy(layers=layers)]).train(), images)
    torch.testing.assert_close(output.logits.double(), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(output.logits, alone, atol=1e-2)
    assert_same(student, reference)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_distill_has_the_loss_and_gradients_of_the_maps(impl: Any, images: Tensor) -> None:
    teacher, student = hf(1), hf(2)
    reference = unfused(student)
    theirs = [maps.detach() for maps in maps_of(unfused(teacher.eval()), images)]
    answer = reference(images.double(), output_attentions=True)
    rows = [-(t * s.log()).sum(dim=-1).mean() for t, s in zip(theirs, answer.attentions, strict=True)]
    expected = torch.stack(rows).mean()
    (F.cross_entropy(answer.logits, TARGETS) + 3.0 * expected).backward()
    output = step(AttentionTransfer(teacher, student, [Distill(weight=3.0, impl=impl)]).train(), images)
    torch.testing.assert_close(output.logits.double(), answer.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.losses["distill"].double(), expected, atol=1e-4, rtol=1e-4)
    assert_same(student, reference)


def test_guide_has_the_loss_and_gradients_of_the_class_rows(images: Tensor) -> None:
    teacher, student = hf(1), hf(2)
    reference = unfused(student)
    theirs = [row.detach() for row in class_rows(unfused(teacher.eval()), images)]
    rows = [(s - t).square().mean() for s, t in zip(class_rows(reference, images), theirs, strict=True)]
    expected = torch.stack(rows).mean()
    (F.cross_entropy(reference(images.double()).logits, TARGETS) + 0.5 * expected).backward()
    output = step(AttentionTransfer(teacher, student, [Guide(weight=0.5)]).train(), images)
    torch.testing.assert_close(output.losses["guide"].double(), expected, atol=1e-4, rtol=1e-4)
    assert_same(student, reference)


def test_a_backbone_without_a_head_can_be_the_teacher(images: Tensor) -> None:
    whole = hf(1)
    expected = AttentionTransfer(whole, hf(2), [Distill()])(images).losses["distill"]
    actual = AttentionTransfer(whole.vit, hf(2), [Distill()])(images).losses["distill"]
    assert torch.equal(actual, expected)


# With models of timm


@pytest.mark.parametrize("rules", RULES)
def test_a_student_of_timm_learns_from_a_teacher_of_transformers_what_it_learns_from_its_like(
    rules: str, tiny_vit: Build, images: Tensor
) -> None:
    teacher = hf(1)
    same = timm_twin(teacher, tiny_vit)
    students = [tiny_vit(2).train(), tiny_vit(2).train()]
    actual, expected = (
        step(AttentionTransfer(t, s, RULES[rules]).train(), images)
        for t, s in zip((teacher, same), students, strict=True)
    )
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for name in expected.losses:
        torch.testing.assert_close(actual.losses[name], expected.losses[name], atol=1e-5, rtol=1e-5)
    for p, q in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


def timm_twin(model: Any, tiny_vit: Build) -> Any:
    """The same backbone in timm."""
    twin = tiny_vit(mlp_ratio=2)
    vit = model.vit
    with torch.no_grad():
        twin.cls_token.copy_(vit.embeddings.cls_token)
        twin.pos_embed.copy_(vit.embeddings.position_embeddings)
        twin.patch_embed.proj.load_state_dict(vit.embeddings.patch_embeddings.projection.state_dict())
        for block, layer in zip(twin.blocks, vit.layers, strict=True):
            projections = [layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj]
            block.attn.qkv.weight.copy_(torch.cat([p.weight for p in projections]))
            block.attn.qkv.bias.copy_(torch.cat([p.bias for p in projections]))
            for mine, theirs in (
                (block.attn.proj, layer.attention.o_proj),
                (block.norm1, layer.layernorm_before),
                (block.norm2, layer.layernorm_after),
                (block.mlp.fc1, layer.mlp.fc1),
                (block.mlp.fc2, layer.mlp.fc2),
            ):
                mine.load_state_dict(theirs.state_dict())
            block.norm1.eps = block.norm2.eps = layer.layernorm_before.eps
    return twin


@pytest.mark.parametrize("rules", RULES)
def test_a_student_of_transformers_learns_from_a_teacher_of_timm(rules: str, tiny_vit: Build, images: Tensor) -> None:
    student = hf(2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    transfer = AttentionTransfer(tiny_vit(1), student, RULES[rules]).train()
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        output = step(transfer, images)
        optimizer.step()
        losses.append(output.total(F.cross_entropy(output.logits, TARGETS)).item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_teacher_for_other_normalisation_sees_the_images_as_it_was_made_for_them(
    tiny_vit: Build, images: Tensor
) -> None:
    teacher = hf(1)
    teacher.config.image_mean, teacher.config.image_std = [0.2], [0.4]
    student = tiny_vit(2)  # 0.5 and 0.5
    actual = AttentionTransfer(teacher, student, [Distill()])(images).losses["distill"]
    theirs = maps_of(unfused(teacher.eval()), (images * 0.5 + 0.5 - 0.2) / 0.4)
    same = unfused_timm_maps(student, images)
    expected = torch.stack([-(t * s.log()).sum(dim=-1).mean() for t, s in zip(theirs, same, strict=True)]).mean()
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


def unfused_timm_maps(model: Any, images: Tensor) -> list[Tensor]:
    plain = copy.deepcopy(model).double()
    maps: list[Tensor] = []
    for block in plain.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
    plain(images.double())
    return maps


# The ways of transformers


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])
def test_gradients_under_checkpointing_are_those_without(options: Any, rules: str, images: Tensor) -> None:
    results = []
    for checkpointing in (False, True):
        student = hf(2, hidden_dropout_prob=0.2)
        if checkpointing:
            student.gradient_checkpointing_enable(**options)
        transfer = AttentionTransfer(hf(1), student, RULES[rules]).train()
        torch.manual_seed(3)
        first, second = transfer(images), transfer(images + 1)
        (first.total(first.logits.square().sum()) + second.total(F.cross_entropy(second.logits, TARGETS))).backward()
        results.append(gradients(student))
    for name in results[0]:
        torch.testing.assert_close(results[1][name], results[0][name])


def test_re_entrant_checkpointing_serves_copy_and_is_refused_by_losses(images: Tensor) -> None:
    plain, student = hf(2), hf(2)
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    step(AttentionTransfer(hf(1), plain, [Copy()]).train(), images)
    transfer = AttentionTransfer(hf(1), student, [Copy()]).train()
    step(transfer, images)
    assert all(torch.equal(a, b) for a, b in zip(gradients(student).values(), gradients(plain).values(), strict=True))
    transfer.release()
    for rule in (Distill(), Guide()):
        transfer = AttentionTransfer(hf(1), student, [rule]).train()
        with pytest.raises(UserError, match=r"re-entrant gradient checkpointing .*'use_reentrant': False"):
            transfer(images)
        transfer.release()


def test_the_logits_are_those_of_the_output_record(images: Tensor) -> None:
    student = hf(2).eval()
    record = student(images)
    for rules in ([], [Distill()], [Guide()]):
        transfer = AttentionTransfer(hf(1) if rules else None, student, rules)
        logits = transfer(images).logits
        assert type(logits) is Tensor
        torch.testing.assert_close(logits, record.logits)
        transfer.release()
    assert torch.equal(student(images).logits, record.logits)


@pytest.mark.parametrize("rules", [[], [Distill()]])
def test_a_student_without_a_head_is_refused_in_a_sentence(rules: list[Any], images: Tensor) -> None:
    student = hf(2).vit
    transfer = AttentionTransfer(hf(1) if rules else None, student, rules)
    with pytest.raises(UserError, match=r"BaseModelOutputWithPooling without class logits; make it with a head"):
        transfer(images)
    assert student(images).last_hidden_state.shape == (4, 5, 24)  # it runs by itself as before


def test_attention_that_can_not_be_seen_is_refused_with_its_mend(images: Tensor) -> None:
    student = hf(2)
    student.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"uses 'eager' attention.*set_attn_implementation\(\"sdpa\"\)"):
        AttentionTransfer(hf(1), student, [Distill()])
    student.set_attn_implementation("sdpa")
    AttentionTransfer(hf(1), student, [Distill()])(images)


def test_nothing_stays_on_either_model(images: Tensor, tapped: Tapped) -> None:
    teacher, student = hf(1), hf(2)
    transfer = AttentionTransfer(teacher, student, RULES["all"])
    transfer(images)
    assert tapped(teacher)
    assert tapped(student)
    transfer.release()
    assert tapped(teacher) == tapped(student) == []
    AttentionTransfer(teacher, student, RULES["all"])(images)
    gc.collect()
    assert tapped(teacher) == tapped(student) == []


def test_a_student_like_its_teacher_is_one_of_transformers(images: Tensor) -> None:
    teacher = hf(1)
    student = student_like(teacher, num_classes=7)
    assert type(student) is type(teacher)
    output = step(AttentionTransfer(teacher, student, [Distill()]).train(), images)
    assert output.logits.shape == (4, 7)


def test_a_pooling_head_is_guided(images: Tensor) -> None:
    """SigLIP has no class token and no classifier on its pooling head; here a linear layer is one."""

    class Classifier(transformers.SiglipVisionModel):
        def forward(self, pixel_values: Tensor) -> Tensor:
            pooled: Tensor = super().forward(pixel_values).pooler_output
            return pooled[:, :5]

    teacher, student = hf(1, "SiglipVisionModel"), hf(2, "SiglipVisionModel")
    student.__class__ = Classifier
    alone = student(images)
    output = step(AttentionTransfer(teacher, student, [Guide(query="pool")]).train(), images)
    torch.testing.assert_close(output.logits, alone)
    assert output.losses["guide"].item() > 0
    assert student.head.probe.grad.abs().max() > 0
