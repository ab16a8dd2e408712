"""`capture` in other libraries, precisions and ways of running, and at other forms of attention.

What holds for a plain model of timm is in `test_capture.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, RecompileError
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torchvision.models import VisionTransformer

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import AttentionCall, anatomy, capture, carries_gradient, hook_attention, logits_of

Build = Callable[..., Any]
Tapped = Callable[[nn.Module], list[str]]

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")

LIBRARIES = ["timm", "hf", "torchvision"]
SIZES = {"image_size": 8, "patch_size": 4, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}


def spread(model: nn.Module) -> Any:
    """Weights so large that a wrong map would not look right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def hugging_face(seed: int, depth: int = 3, **overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.ViTConfig(num_hidden_layers=depth, num_labels=5, **{**SIZES, **overrides})
    return spread(transformers.ViTForImageClassification(config))


def torchvision_vit(seed: int, depth: int) -> Any:
    torch.manual_seed(seed)
    return spread(VisionTransformer(8, 4, num_layers=depth, num_heads=4, hidden_dim=24, mlp_dim=48, num_classes=5))


@pytest.fixture
def make(tiny_vit: Build) -> Build:
    """Builds a tiny ViT of a library, for colour images of 8x8 pixels."""
    builders: dict[str, Build] = {
        "timm": lambda seed, depth: tiny_vit(seed, depth=depth, in_chans=3),
        "hf": hugging_face,
        "torchvision": torchvision_vit,
    }

    def build(library: str, seed: int = 0, depth: int = 3) -> Any:
        return builders[library](seed, depth)

    return build


@pytest.fixture
def pictures() -> Tensor:
    """Four random colour images of 8x8 pixels."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def own_maps(model: Any, pictures: Tensor) -> list[Tensor]:
    """Attention maps, (B, H, N, N) a block, by the library's own code that forms them."""
    return maps_formed_by(copy.deepcopy(model), pictures)


def maps_formed_by(plain: Any, pictures: Tensor) -> list[Tensor]:
    """Make the model form its maps from now on, and give those of one forward."""
    maps: list[Tensor] = []
    if isinstance(plain, VisionTransformer):
        for layer in plain.encoder.layers:
            layer.self_attention.forward = weighed(layer.self_attention.forward, maps)
    elif hasattr(plain, "set_attn_implementation"):
        plain.set_attn_implementation("eager")
        return list(plain(pictures, output_attentions=True).attentions)
    else:
        for block in plain.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
    plain(pictures)
    return maps


def weighed(forward: Callable[..., Any], maps: list[Tensor]) -> Callable[..., Any]:
    """`nn.MultiheadAttention.forward` that keeps its maps."""

    def run(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> tuple[Tensor, None]:
        output, weights = forward(query, key, value, need_weights=True, average_attn_weights=False)
        maps.append(weights)
        return output, None

    return run


def logits(model: nn.Module, pictures: Tensor) -> Tensor:
    return logits_of(model(pictures))


def footprint(model: nn.Module) -> dict[str, Any]:
    """Everything that is attached to each module: its attributes, and the numbers of its hooks."""
    return {
        name: [(key, len(value) if isinstance(value, dict) else None) for key, value in sorted(vars(module).items())]
        for name, module in model.named_modules()
    }


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def squares(maps: list[Tensor]) -> Tensor:
    return torch.stack([m.square().sum() for m in maps]).sum()


def assert_maps(calls: list[AttentionCall], expected: list[Tensor]) -> None:
    assert [call.layer for call in calls] == [*range(len(expected))]
    for call, maps in zip(calls, expected, strict=True):
        torch.testing.assert_close(call.maps(), maps, atol=1e-5, rtol=0)


# Every library


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_maps_are_those_that_the_library_itself_forms(library: str, mode: Any, make: Build, pictures: Tensor) -> None:
    model = make(library)
    with mode():
        before = logits(model, pictures)
        with capture(model) as calls:
            output = logits(model, pictures)
        assert torch.equal(output, before)
        assert_maps(calls, own_maps(model, pictures))


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_stays_on_the_model_whatever_ends_the_context(library: str, make: Build, pictures: Tensor) -> None:
    model = make(library)
    before, expected = footprint(model), logits(model, pictures)
    with capture(model):
        assert footprint(model) != before
        logits(model, pictures)
    assert footprint(model) == before
    with pytest.raises(KeyboardInterrupt), capture(model):
        raise KeyboardInterrupt
    assert footprint(model) == before
    failing = anatomy(model).blocks[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    during = footprint(model)
    with pytest.raises(ZeroDivisionError), capture(model):
        logits(model, pictures)
    assert footprint(model) == during
    failing.remove()
    with pytest.raises((AssertionError, ValueError)), capture(model):
        logits(model, pictures[:, :, :4])
    assert footprint(model) == before
    assert torch.equal(logits(model, pictures), expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_exception_of_one_forward_does_not_disturb_the_next(library: str, make: Build, pictures: Tensor) -> None:
    model = make(library)
    expected = own_maps(model, pictures)
    with capture(model) as calls:
        handle = anatomy(model).blocks[1].register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(model, pictures)
        handle.remove()
        assert [call.layer for call in calls] == [0]
        logits(model, pictures)
    assert_maps(calls[1:], expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_captures_of_two_models_nest_and_interleave(library: str, make: Build, pictures: Tensor) -> None:
    first, second = make(library, 1), make(library, 2)
    of_first, of_second = own_maps(first, pictures), own_maps(second, pictures)
    with capture(first) as outer:
        with capture(second) as inner:
            for model in (second, first, second):
                logits(model, pictures)
        logits(second, pictures)
    assert_maps(outer, of_first)
    assert_maps(inner[:3], of_second)
    assert_maps(inner[3:], of_second)
    with ExitStack() as ends_late:
        with ExitStack() as ends_first:
            early = ends_first.enter_context(capture(first))
            late = ends_late.enter_context(capture(second))
            logits(first, pictures)
        logits(first, pictures)
        logits(second, pictures)
    assert_maps(early, of_first)
    assert_maps(late, of_second)


# Precisions


def projected(model: Any) -> list[list[Tensor]]:
    """Fills with q, k and v of each block as its linear layers give them, (B, N, C) each."""
    seen: list[list[Tensor]] = []
    for module in anatomy(model).attention:
        attention: Any = module
        if hasattr(attention, "qkv"):
            attention.qkv.register_forward_hook(lambda m, args, output: seen.append([*output.chunk(3, dim=-1)]))
        else:
            attention.q_proj.register_forward_hook(lambda m, args, output: seen.append([output]))
            attention.k_proj.register_forward_hook(lambda m, args, output: seen[-1].append(output))
            attention.v_proj.register_forward_hook(lambda m, args, output: seen[-1].append(output))
    return seen


@pytest.mark.parametrize("library", ["timm", "hf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_operands_are_the_projections_in_that_precision(
    library: str, dtype: torch.dtype, make: Build, pictures: Tensor
) -> None:
    model = make(library).train()
    expected = projected(model)
    with torch.autocast("cpu", dtype):
        before = logits(model, pictures)
        expected.clear()
        with capture(model) as calls:
            output = logits(model, pictures)
    assert output.dtype == dtype
    assert torch.equal(output, before)
    for call, parts in zip(calls, expected, strict=True):
        for operand, part in zip((call.q, call.k, call.v), parts, strict=True):
            assert operand.dtype == dtype
            assert torch.equal(operand.transpose(1, 2).flatten(2), part)


@pytest.mark.parametrize("rule", [Copy(), Distill(), Guide()])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_twin_as_the_teacher_changes_nothing_under_autocast(
    library: str, dtype: torch.dtype, rule: Any, make: Build, pictures: Tensor
) -> None:
    student = make(library)
    transfer = AttentionTransfer(copy.deepcopy(student), student, [rule])
    with torch.autocast("cpu", dtype):
        expected = logits(student, pictures)
        output = transfer(pictures)
        output.total(output.logits.square().mean()).backward()
    error = 8 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(output.logits, expected, atol=error, rtol=0)
    assert output.logits.dtype == dtype
    assert all(torch.isfinite(gradient).all() for gradient in gradients(student))
    if isinstance(rule, Distill):  # the cross-entropy with itself is the entropy, which has no gradient
        entropies = [torch.special.entr(maps).sum(dim=-1).mean() for maps in own_maps(student, pictures)]
        entropy = torch.stack(entropies).mean()
        torch.testing.assert_close(output.losses["distill"].float(), entropy, atol=error, rtol=0.05)
    if isinstance(rule, Guide):
        assert output.losses["guide"].item() < error


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_of_another_precision_is_captured_in_its_own(
    library: str, dtype: torch.dtype, make: Build, pictures: Tensor
) -> None:
    model = make(library).to(dtype)
    with torch.no_grad(), capture(model) as calls:
        output = logits(model, pictures.to(dtype))
    with torch.no_grad():
        assert torch.equal(output, logits(model, pictures.to(dtype)))
    assert {tensor.dtype for call in calls for tensor in (call.q, call.k, call.v, call.maps())} == {dtype}
    if dtype == torch.float64:
        for call, maps in zip(calls, own_maps(model, pictures.to(dtype)), strict=True):
            torch.testing.assert_close(call.maps(), maps.double(), atol=1e-6, rtol=0)  # transformers' softmax is single


# Gradient checkpointing


def checkpointed(model: Any, kind: str, *, reentrant: bool) -> Any:
    """The model with checkpointed blocks."""
    if kind == "hf":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        return model
    how = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    parent, name = (model.encoder, "layers") if kind == "torchvision" else (model, "blocks")
    wrapped = [checkpoint_wrapper(block, how) for block in getattr(parent, name)]
    setattr(parent, name, nn.Sequential(*wrapped))
    return model


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_checkpointed_model_is_recorded_once_and_keeps_its_gradients(
    library: str, reentrant: bool, make: Build, pictures: Tensor
) -> None:
    plain, model = make(library).train(), checkpointed(make(library).train(), library, reentrant=reentrant)
    expected = own_maps(plain, pictures)
    logits(plain, pictures).square().sum().backward()
    with capture(model) as calls:
        output = logits(model, pictures)
        assert all(carries_gradient(model, call) is not reentrant for call in calls)
        output.square().sum().backward()
    assert_maps(calls, expected)
    for a, b in zip(gradients(plain), gradients(model), strict=True):
        # nn.MultiheadAttention's projections are made by the seam, so that torchvision's agree to rounding only.
        if library == "torchvision":
            torch.testing.assert_close(b, a, atol=1e-3, rtol=1e-4)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("library", ["timm", "hf", "torchvision"])
def test_a_loss_on_the_maps_of_a_checkpointed_model_has_its_gradients(
    library: str, make: Build, pictures: Tensor
) -> None:
    plain, model = make(library).train(), checkpointed(make(library).train(), library, reentrant=False)
    squares(maps_formed_by(plain, pictures)).backward()
    with capture(model) as calls:
        logits(model, pictures)
    squares([call.maps() for call in calls]).backward()
    for expected, actual in zip(gradients(plain), gradients(model), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


# torch.compile


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_compiled_model_is_captured_after_it_ran_alone_and_without_another_compilation(
    library: str, make: Build, pictures: Tensor
) -> None:
    plain, model = make(library, depth=2).train(), make(library, depth=2).train()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = logits(compiled, pictures)
    with capture(model) as calls:
        assert torch.equal(logits(compiled, pictures), expected)
    assert_maps(calls, own_maps(model, pictures))
    squares([call.maps() for call in calls]).backward()
    squares(maps_formed_by(plain, pictures)).backward()
    for a, b in zip(gradients(plain), gradients(model), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(logits(compiled, pictures), expected)
        assert len(calls) == 2
        for shift in range(3):
            with capture(compiled) as calls:
                logits(compiled, pictures + shift)
            assert_maps(calls, own_maps(model, pictures + shift))


@pytest.mark.xfail(
    strict=True,
    raises=(RecompileError, FailOnRecompileLimitHit),
    reason="Dynamo guards on the length of the list of calls: each forward within one context compiles the model "
    "again, and the ninth fails with fullgraph=True",
)
def test_many_forwards_of_a_compiled_model_within_one_context_compile_it_once(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit(depth=1)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with capture(model) as calls:
        compiled(images)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(9):
                compiled(images)
    assert len(calls) == 10


def test_a_compiled_model_under_autocast_is_captured_as_in_eager(make: Build, pictures: Tensor) -> None:
    model = make("timm", depth=2)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        with capture(model) as eager:
            expected = model(pictures)
        with capture(model) as calls:
            assert torch.equal(compiled(pictures), expected)
    assert all(torch.equal(a.q, b.q) and torch.equal(a.k, b.k) for a, b in zip(calls, eager, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_checkpointed_model_is_captured_with_graph_breaks(
    reentrant: bool, make: Build, pictures: Tensor
) -> None:
    """In one graph it can't be: Dynamo lets no checkpointed block change what lies outside, and says so."""
    model = checkpointed(make("timm", depth=2).train(), "timm", reentrant=reentrant)
    expected = make("timm", depth=2).train()
    logits(expected, pictures).square().sum().backward()
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    with capture(model) as calls:
        compiled(pictures).square().sum().backward()
    assert_maps(calls, own_maps(expected, pictures))
    for a, b in zip(gradients(expected), gradients(model), strict=True):
        torch.testing.assert_close(b, a)


# Copies


def updated(average: Any, model: nn.Module) -> nn.Module:
    if isinstance(average, ModelEmaV3):
        average.update(model)
    else:
        average.update_parameters(model)
    module: nn.Module = average.module
    return module


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "timm's EMA": lambda model: updated(ModelEmaV3(model, decay=0.0), model),
    "torch's average": lambda model: updated(AveragedModel(model), model),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_copy_of_a_bound_model_is_not_bound(library: str, kind: str, make: Build, pictures: Tensor) -> None:
    teacher, student = make(library, 1), make(library, 2)
    alone = logits(student, pictures)
    transfer = AttentionTransfer(teacher, student, [Copy()])
    bound = transfer(pictures).logits
    assert not torch.allclose(bound, alone, atol=1e-2)
    with capture(student) as calls:
        twin = COPIES[kind](student)
        assert torch.equal(logits(twin, pictures), alone)
        assert torch.equal(logits(twin.train(), pictures), logits(student.train(), pictures))
    assert len(calls) == 3  # of the student, and not of its copy
    assert twin.state_dict().keys() == student.state_dict().keys()
    assert torch.equal(transfer.eval()(pictures).logits, bound)
    transfer.release()
    assert torch.equal(logits(twin.eval(), pictures), alone)


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_a_bound_model_can_be_bound_itself(kind: str, make: Build, pictures: Tensor) -> None:
    teacher, student = make("timm", 1), make("timm", 2)
    transfer = AttentionTransfer(teacher, student, [Copy()])
    expected = transfer(pictures).logits
    twin = COPIES[kind](student)
    again = AttentionTransfer(teacher, twin, [Copy()])
    assert torch.equal(again(pictures).logits, expected)
    transfer.release()
    assert torch.equal(again(pictures).logits, expected)


@pytest.mark.parametrize("rule", [Copy(), Copy(parts="q"), Distill(), Distill(impl="reference"), Guide()])
@pytest.mark.parametrize("library", ["timm", "hf"])
def test_a_bound_student_can_be_captured_and_shows_the_operands_that_it_uses(
    library: str, rule: Any, make: Build, pictures: Tensor
) -> None:
    teacher, student = make(library, 1), make(library, 2)
    with capture(teacher) as theirs, torch.no_grad():
        logits(teacher, pictures)
    transfer = AttentionTransfer(teacher, student, [rule]).train()
    expected = transfer(pictures)
    with capture(student) as calls:
        actual = transfer(pictures)
    assert torch.equal(actual.logits, expected.logits)
    assert actual.losses == expected.losses
    assert [call.layer for call in calls] == [0, 1, 2]
    if rule == Copy():
        for call, other in zip(calls, theirs, strict=True):
            torch.testing.assert_close(call.maps(), other.maps())
    if not isinstance(rule, Copy):
        assert_maps(calls, own_maps(student, pictures))
        assert all(call.q.requires_grad for call in calls)


@pytest.mark.parametrize("kind", COPIES)
def test_an_average_of_a_whole_transfer_is_a_transfer(kind: str, make: Build, pictures: Tensor) -> None:
    transfer = AttentionTransfer(make("timm", 1), make("timm", 2), [Copy(layers=[0]), Distill(layers=[1])])
    expected = transfer(pictures)
    twin = COPIES[kind](transfer)
    assert isinstance(twin, AttentionTransfer)
    assert twin.student is not transfer.student
    actual = twin(pictures)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.losses["distill"], expected.losses["distill"])


# Forms of the attention call

N, H, D = 5, 3, 8
BIAS = torch.randn(1, H, N, N, generator=torch.Generator().manual_seed(1))
SEEN = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) > 0.4
SEEN.fill_diagonal_(True)
ATTEND = F.scaled_dot_product_attention

FORMS: dict[str, tuple[Callable[..., Tensor], Tensor | None, float, int]] = {
    # the call, and what it means: an additive or boolean mask, a scale, and the number of heads that have own keys
    "plain": (ATTEND, None, D**-0.5, H),
    "by name": (lambda q, k, v: ATTEND(value=v, key=k, query=q, scale=None), None, D**-0.5, H),
    "by position": (lambda q, k, v: ATTEND(q, k, v, BIAS, 0.0, False), BIAS, D**-0.5, H),
    "own scale": (lambda q, k, v: ATTEND(q, k, v, scale=0.7), None, 0.7, H),
    "float mask": (lambda q, k, v: ATTEND(q, k, v, attn_mask=BIAS[0, 0], scale=0.2), BIAS[0, 0], 0.2, H),
    "boolean mask": (lambda q, k, v: ATTEND(q, k, v, attn_mask=SEEN), SEEN, D**-0.5, H),
    "mask of keys": (lambda q, k, v: ATTEND(q, k, v, attn_mask=SEEN[:1]), SEEN[:1], D**-0.5, H),
    "grouped keys": (lambda q, k, v: ATTEND(q, k[:, :1], v[:, :1], enable_gqa=True), None, D**-0.5, 1),
    "grouped keys, scale and mask": (
        lambda q, k, v: ATTEND(q, k[:, :1], v[:, :1], attn_mask=BIAS, scale=0.3, enable_gqa=True),
        BIAS,
        0.3,
        1,
    ),
}


class OwnAttention(nn.Module):
    """An attention module as somebody may write it into a timm model."""

    fused_attn = True

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = H, D, D**-0.5
        self.qkv, self.proj = nn.Linear(H * D, 3 * H * D), nn.Linear(H * D, H * D)
        self.attend = attend
        spread(self)

    def operands(self, x_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x_BNC: Tensor, **_: Any) -> Tensor:
        attended: Tensor = self.proj(self.attend(*self.operands(x_BNC)).transpose(1, 2).flatten(2))
        return attended


def by_hand(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Maps in double precision, by the definition."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(mask, scores, -torch.inf)
    elif mask is not None:
        scores = scores + mask.double()
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


@pytest.fixture
def with_form(tiny_vit: Build) -> Build:
    """Builds a tiny timm ViT of one block whose attention calls the kernel in its own way."""

    def build(attend: Callable[..., Tensor]) -> Any:
        model = tiny_vit(depth=1)
        model.blocks[0].attn = OwnAttention(attend)
        return model

    return build


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_the_call_is_seen_as_it_is_meant(form: str, with_form: Build, images: Tensor) -> None:
    attend, mask, scale, key_heads = FORMS[form]
    model = with_form(attend)
    inputs: list[Tensor] = []
    model.blocks[0].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    before = model(images)
    with capture(model) as calls:
        assert torch.equal(model(images), before)
    (call,) = calls
    q, k, v = model.blocks[0].attn.operands(inputs[-1])
    if key_heads == 1:
        k, v = (x[:, :1].expand(-1, H, -1, -1) for x in (k, v))
    assert torch.equal(call.q, q)
    assert torch.equal(call.k, k)
    assert torch.equal(call.v, v)
    assert call.scale == scale
    maps = by_hand(q, k, mask, scale)
    torch.testing.assert_close(call.maps().double(), maps, atol=1e-5, rtol=0)
    torch.testing.assert_close(call.class_logits().softmax(-1).double(), maps[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_operands_that_a_listener_gives_are_used_in_each_form(form: str, with_form: Build, images: Tensor) -> None:
    attend, mask, scale, _ = FORMS[form]
    model = with_form(attend)
    outputs: list[Tensor] = []
    model.blocks[0].attn.proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    given = torch.randn(2, 4, H, N, D)
    seen: list[AttentionCall] = []

    def exchange(call: AttentionCall) -> AttentionCall:
        seen.append(call)
        return replace(call, q=given[0], k=given[1])

    (handle,) = hook_attention(model, {0: exchange})
    model(images)
    handle.remove()
    expected = by_hand(given[0], given[1], mask, scale) @ seen[0].v.double()
    torch.testing.assert_close(outputs[0].double(), expected.transpose(1, 2).flatten(2), atol=1e-4, rtol=1e-4)


def test_a_listener_that_gives_the_same_call_changes_no_bit(with_form: Build, images: Tensor) -> None:
    for attend, *_ in FORMS.values():
        model = with_form(attend)
        expected = model(images)
        (handle,) = hook_attention(model, {0: replace})
        assert torch.equal(model(images), expected)
        handle.remove()


def test_causal_attention_is_refused(with_form: Build, images: Tensor, tapped: Tapped) -> None:
    model = with_form(lambda q, k, v: ATTEND(q, k, v, is_causal=True))
    with pytest.raises(UserError, match="causal attention is not supported"), capture(model):
        model(images)
    assert tapped(model) == []


def test_attention_that_is_computed_in_two_calls_is_refused(with_form: Build, images: Tensor) -> None:
    model = with_form(lambda q, k, v: ATTEND(q, k, v) - ATTEND(q, k, v))
    with pytest.raises(UserError, match="block 0 made 2 calls"), capture(model):
        model(images)


def test_a_mode_of_somebody_else_still_sees_the_attention(make: Build, pictures: Tensor) -> None:
    class Counts(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            self.names.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    model = make("timm")
    with Counts() as without:
        model(pictures)
    with Counts() as within, capture(model):
        model(pictures)
    assert within.names.count("scaled_dot_product_attention") == 3
    assert within.names.count("linear") == without.names.count("linear")


COMPONENTS: dict[str, dict[str, Any]] = {
    "q/k norm": {"qk_norm": True},
    "bias in the mask": {"name": "beit_base_patch16_224"},
    "RoPE": {"name": "eva02_tiny_patch14_224"},
}


@pytest.mark.parametrize("components", COMPONENTS)
def test_a_compiled_model_with_components_in_its_attention_is_captured_as_in_eager(
    components: str, tiny_vit: Build, images: Tensor, unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]]
) -> None:
    model = tiny_vit(depth=1, **COMPONENTS[components])
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with capture(model) as calls:
        compiled(images)
    assert_maps(calls, unfused_maps(model, images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("components", COMPONENTS)
def test_components_in_the_attention_leave_the_output_alone_under_autocast(
    components: str, dtype: torch.dtype, tiny_vit: Build, images: Tensor
) -> None:
    model = tiny_vit(depth=2, **COMPONENTS[components])
    with torch.autocast("cpu", dtype):
        expected = model(images)
        with capture(model) as calls:
            assert torch.equal(model(images), expected)
        for call in calls:
            rows = call.maps().sum(dim=-1).float()
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=2 * torch.finfo(dtype).eps, rtol=0)


# Attention-pool heads


def siglip(tiny_vit: Build, library: str) -> Any:
    if library == "timm":
        return tiny_vit(name="vit_base_patch16_siglip_224", in_chans=3)
    transformers = pytest.importorskip("transformers")
    return spread(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(num_hidden_layers=3, **SIZES)))


def pooled(model: Any, pictures: Tensor) -> Tensor:
    output = model(pictures)
    result: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return result


@pytest.mark.parametrize("library", ["timm", "hf"])
def test_the_pooling_head_is_no_layer_and_is_given_where_it_is_asked_for(
    library: str, tiny_vit: Build, pictures: Tensor, tapped: Tapped
) -> None:
    model = siglip(tiny_vit, library)
    expected = pooled(model, pictures)
    with capture(model) as without, capture(model, layers=[-1], pool=True) as calls:
        assert torch.equal(pooled(model, pictures), expected)
    assert [call.layer for call in without] == [0, 1, 2]
    assert [call.layer for call in calls] == [2, -1]
    pool = calls[1]
    assert (pool.q.shape, pool.k.shape) == ((4, 3, 1, 8), (4, 3, 4, 8))
    torch.testing.assert_close(pool.maps(), pool_maps(model, pictures), atol=1e-5, rtol=0)
    assert tapped(model) == []


def pool_maps(model: Any, pictures: Tensor) -> Tensor:
    """The pooling head's maps, (B, H, 1, N), by the library's own code."""
    plain = copy.deepcopy(model)
    head: Any = anatomy(plain).pool
    is_multihead = isinstance(head, nn.MultiheadAttention)
    maps: list[Tensor] = []
    if is_multihead:
        head.forward = weighed(head.forward, maps)
        plain(pictures)
        return maps[0]
    inputs: list[Tensor] = []
    head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    plain(pictures)
    q = head.q(head.latent).unflatten(-1, (3, 8)).transpose(1, 2)
    k = head.kv(inputs[0])[..., : 3 * 8].unflatten(-1, (3, 8)).transpose(1, 2)
    scores: Tensor = 8**-0.5 * q @ k.mT
    return scores.softmax(dim=-1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_pooling_head_that_is_not_there_is_refused(library: str, make: Build, tapped: Tapped) -> None:
    model = make(library)
    with pytest.raises(UserError, match="has no attention-pool head"), capture(model, pool=True):
        pass
    assert tapped(model) == []
