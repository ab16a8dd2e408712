"""`torch.nn.MultiheadAttention`, which hides its attention call, and torchvision's ViTs, which are made of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer

from attention_transfer.errors import UserError
from attention_transfer.hooks import Site, hook_module
from attention_transfer.transfer import AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import AttentionCall, AttentionProbe, Tokens, capture

MODES = [*itertools.product((False, True), (False, True))]  # training, and whether gradients are wanted
BATCH, QUERIES, KEYS, HEADS, WIDTH = 4, 5, 7, 4, 24  # the module has its inference kernel for even numbers of heads
TARGETS = torch.tensor([0, 1, 2, 3])


def spread(model: nn.Module) -> Any:
    """Weights so large that a wrong map would not look right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
    return model.eval()


def vit(seed: int = 0, **overrides: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"num_layers": 3, "num_heads": HEADS, "hidden_dim": WIDTH, "mlp_dim": 48, "num_classes": 5}
    return spread(VisionTransformer(8, 4, **{**sizes, **overrides}))


@pytest.fixture
def pictures() -> Tensor:
    """Four random colour images of 8x8 pixels."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def by_hand(module: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (B, H, tokens, D), of inputs with the batch first."""
    q_weight, k_weight, v_weight = module.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = (0.0, 0.0, 0.0) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q = query @ q_weight.T + q_bias
    k = key @ k_weight.T + k_bias
    v = value @ v_weight.T + v_bias
    q, k, v = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def softmax(q: Tensor, k: Tensor) -> Tensor:
    scores: Tensor = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    maps: Tensor = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return maps


def naive(model: nn.Module, given: dict[int, Tensor] | None = None) -> tuple[Any, list[Tensor]]:
    """A double-precision copy that forms its maps, but for those of the given layers; and a list that gets them."""
    plain: Any = copy.deepcopy(model).double()
    maps: list[Tensor] = []
    replaced = given or {}

    def attend(module: Any, layer: int, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> tuple[Tensor, None]:
        q, k, v = by_hand(module, query, key, value)
        maps.append(replaced[layer] if layer in replaced else softmax(q, k))
        return module.out_proj((maps[-1] @ v).transpose(1, 2).flatten(2)), None

    for layer, block in enumerate(plain.encoder.layers):
        block.self_attention.forward = partial(attend, block.self_attention, layer)
    return plain, maps


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


class Kernels(TorchDispatchMode):
    """Writes down the names of the kernels that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# torchvision's models


@pytest.mark.parametrize(("training", "grad"), MODES)
def test_logits_are_bitwise_those_without_and_maps_those_of_the_module(
    training: bool, grad: bool, pictures: Tensor
) -> None:
    model = vit().train(training)
    plain, maps = naive(model)
    with torch.set_grad_enabled(grad):
        before = model(pictures)
        with capture(model) as calls:
            output = model(pictures)
    plain(pictures.double())
    assert torch.equal(output, before)
    assert [call.layer for call in calls] == [0, 1, 2]
    for call, expected in zip(calls, maps, strict=True):
        assert call.q.shape == call.k.shape == call.v.shape == (4, HEADS, 5, 6)
        assert call.q.requires_grad is grad
        torch.testing.assert_close(call.maps().double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("training", "grad"), MODES)
def test_operands_are_those_of_the_input_that_each_block_gave(training: bool, grad: bool, pictures: Tensor) -> None:
    model = vit().train(training)
    inputs: list[Tensor] = []
    modules = [block.self_attention for block in model.encoder.layers]
    hooks = [m.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for m in modules]
    with torch.set_grad_enabled(grad), capture(model) as calls:
        model(pictures)
    for hook in hooks:
        hook.remove()
    for module, x_BNC, call in zip(modules, inputs, calls, strict=True):
        for operand, expected in zip((call.q, call.k, call.v), by_hand(module, x_BNC, x_BNC, x_BNC), strict=True):
            torch.testing.assert_close(operand, expected, atol=1e-5, rtol=1e-5)
        weights = module(x_BNC, x_BNC, x_BNC, need_weights=True, average_attn_weights=False)[1]
        torch.testing.assert_close(call.maps(), weights, atol=1e-6, rtol=1e-5)


def test_inference_keeps_its_own_kernel(pictures: Tensor) -> None:
    model = vit()
    with torch.no_grad(), Kernels() as without:
        model(pictures)
    with torch.no_grad(), Kernels() as within, capture(model):
        model(pictures)
    assert without.names.count("_native_multi_head_attention") == 3
    assert within.names.count("_native_multi_head_attention") == 3


def test_a_frozen_model_has_the_same_logits_where_gradients_are_enabled(pictures: Tensor) -> None:
    model = vit().double().requires_grad_(False)
    with Kernels() as without:
        before = model(pictures.double())
    with Kernels() as within, capture(model):
        output = model(pictures.double())
    assert within.names.count("_native_multi_head_attention") == without.names.count("_native_multi_head_attention")
    assert torch.equal(output, before)


@pytest.mark.parametrize(("training", "grad"), MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_bitwise_those_without_under_autocast(
    dtype: torch.dtype, training: bool, grad: bool, pictures: Tensor
) -> None:
    model = vit().train(training)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        before = model(pictures)
        with capture(model) as calls:
            output = model(pictures)
    assert {call.q.dtype for call in calls} == {dtype}
    assert torch.equal(output, before)


@pytest.mark.parametrize(
    ("training", "grad"),
    MODES,
)
def test_dropout_draws_the_same_random_numbers_under_capture(training: bool, grad: bool, pictures: Tensor) -> None:
    model = vit(attention_dropout=0.3, dropout=0.3).train(training)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        before = model(pictures)
        torch.manual_seed(1)
        with capture(model):
            output = model(pictures)
    assert torch.equal(output, before)


def test_dropout_of_the_attention_stays_in_use_in_training_only(pictures: Tensor) -> None:
    model = vit(attention_dropout=0.5)
    without = vit()
    for training in (False, True):
        with capture(model) as calls:
            first, second = model.train(training)(pictures), model(pictures)
        assert torch.equal(first, second) is not training
        assert torch.equal(first, without(pictures)) is not training
        assert torch.equal(calls[0].maps(), calls[3].maps())  # of the attention before dropout


@pytest.mark.parametrize(("training", "grad"), MODES)
def test_captures_nest(training: bool, grad: bool, pictures: Tensor) -> None:
    model = vit().train(training)
    with torch.set_grad_enabled(grad):
        before = model(pictures)
        with capture(model) as outer, capture(model, layers=[1]) as inner:
            assert torch.equal(model(pictures), before)
    assert ([call.layer for call in outer], [call.layer for call in inner]) == ([0, 1, 2], [1])
    assert torch.equal(outer[1].q, inner[0].q)


@pytest.mark.parametrize("rule", [Copy(), Distill()])
def test_a_bound_student_can_be_captured_too(rule: Any, pictures: Tensor) -> None:
    transfer = AttentionTransfer(vit(1), vit(2), [rule]).train()
    expected = transfer(pictures)
    with capture(transfer.student) as calls:
        actual = transfer(pictures)
    assert torch.equal(actual.logits, expected.logits)
    assert actual.losses == expected.losses
    assert [call.layer for call in calls] == [0, 1, 2]


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_a_loss_on_captured_operands_are_those_of_the_naive_maps(training: bool, pictures: Tensor) -> None:
    model = vit().double().train(training)
    plain, maps = naive(model)
    with capture(model) as calls:
        logits = model(pictures.double())
    plain_logits = plain(pictures.double())
    (logits.square().sum() + sum(call.maps().square().sum() for call in calls)).backward()
    (plain_logits.square().sum() + sum(m.square().sum() for m in maps)).backward()
    for expected, actual in zip(gradients(plain), gradients(model), strict=True):
        torch.testing.assert_close(actual, expected)


# Transfer between torchvision's models


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers", [[0, 1, 2], [1]])
def test_copy_has_the_logits_and_gradients_of_naive_maps(layers: list[int], training: bool, pictures: Tensor) -> None:
    images = pictures.double()
    teacher, student = vit(1).double(), vit(2).double()
    source, theirs = naive(teacher)
    source(images)
    reference, _ = naive(student, {layer: theirs[layer].detach() for layer in layers})
    expected = reference(images)
    alone = student(images)
    transfer = AttentionTransfer(teacher, student, [Copy(layers=layers)]).train(training)
    logits = transfer(images).logits
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, alone, atol=1e-2)
    F.cross_entropy(logits, TARGETS).backward()
    F.cross_entropy(expected, TARGETS).backward()
    for wanted, actual in zip(gradients(reference), gradients(student), strict=True):
        torch.testing.assert_close(actual, wanted)
    with torch.no_grad():
        torch.testing.assert_close(transfer.eval()(images).logits, expected)


@pytest.mark.parametrize("training", [False, True])
def test_distill_has_the_loss_and_gradients_of_naive_maps(training: bool, pictures: Tensor) -> None:
    images = pictures.double()
    teacher, student = vit(1).double(), vit(2).double()
    source, theirs = naive(teacher)
    source(images)
    reference, own = naive(student)
    expected_logits = reference(images)
    rows = [-(t.detach() * s.log()).sum(dim=-1).mean() for t, s in zip(theirs, own, strict=True)]
    expected = torch.stack(rows).mean()
    output = AttentionTransfer(teacher, student, [Distill(weight=3.0)]).train(training)(images)
    torch.testing.assert_close(output.logits, expected_logits)
    torch.testing.assert_close(output.losses["distill"], expected)
    output.total(F.cross_entropy(output.logits, TARGETS)).backward()
    (F.cross_entropy(expected_logits, TARGETS) + 3.0 * expected).backward()
    for wanted, actual in zip(gradients(reference), gradients(student), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_guide_has_the_loss_of_naive_logits(pictures: Tensor) -> None:
    images = pictures.double()
    teacher, student = vit(1).double(), vit(2).double()
    with capture(teacher) as theirs, torch.no_grad():
        teacher(images)
    with capture(student) as own, torch.no_grad():
        student(images)
    rows = [torch.einsum("bhd,bhmd->bhm", s.q[:, :, 0], s.k) / 6**0.5 for s in (*theirs, *own)]
    expected = torch.stack([(s - t).square().mean() for t, s in zip(rows[:3], rows[3:], strict=True)]).mean()
    torch.testing.assert_close(AttentionTransfer(teacher, student, [Guide()])(images).losses["guide"], expected)


@pytest.mark.parametrize("values", [False, True])
def test_a_probe_gives_the_operands_of_its_layers(values: bool, pictures: Tensor) -> None:
    model = vit()
    with capture(model) as expected, torch.no_grad():
        model(pictures)
    calls = AttentionProbe(model, [0, 1], values=values)(pictures)
    assert [*calls] == [0, 1]
    for layer, call in calls.items():
        assert torch.equal(call.q, expected[layer].q)
        assert torch.equal(call.k, expected[layer].k)


# The module by itself


@contextmanager
def listening(module: nn.MultiheadAttention, listener: Callable[[AttentionCall], AttentionCall]) -> Iterator[None]:
    handle = hook_module(Site(module, 0, Tokens(), {}), listener)
    try:
        yield
    finally:
        handle.remove()


def attention(**options: Any) -> Any:
    torch.manual_seed(0)
    return spread(nn.MultiheadAttention(WIDTH, HEADS, **options))


def operands(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with the batch first: one tensor, two, or three."""
    query, key, value = torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, WIDTH), None
    if kind == "self":
        return query, query, query
    value = key if kind == "cross" else torch.randn(BATCH, KEYS, WIDTH)
    return query, key, value


@pytest.mark.parametrize(("training", "grad"), MODES)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "three"])
def test_a_module_gives_what_it_gives_alone(
    kind: str, batch_first: bool, bias: bool, need_weights: bool, training: bool, grad: bool
) -> None:
    module = attention(batch_first=batch_first, bias=bias).train(training)
    inputs = operands(kind)
    given = inputs if batch_first else reordered(inputs)
    options = {"need_weights": need_weights, "average_attn_weights": False}
    calls: list[AttentionCall] = []

    def hear(call: AttentionCall) -> AttentionCall:
        calls.append(call)
        return call

    with torch.set_grad_enabled(grad):
        expected, weights = module(*given, **options)
        with listening(module, hear):
            output, same_weights = module(*given, **options)
        q, k, v = by_hand(module, *inputs)
        _, all_weights = module(*given, need_weights=True, average_attn_weights=False)
    assert torch.equal(output, expected)
    assert (weights is None and same_weights is None) or torch.equal(weights, same_weights)
    (call,) = calls
    for operand, wanted in zip((call.q, call.k, call.v), (q, k, v), strict=True):
        torch.testing.assert_close(operand, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(call.maps(), all_weights, atol=1e-6, rtol=1e-5)


def reordered(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Tokens first; the same tensor stays the same."""
    moved = {id(x): x.transpose(0, 1) for x in inputs}
    return [moved[id(x)] for x in inputs]


@pytest.mark.parametrize(("training", "grad"), MODES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "three"])
def test_operands_that_a_listener_gives_are_used(kind: str, batch_first: bool, training: bool, grad: bool) -> None:
    module = attention(batch_first=batch_first).train(training)
    inputs = operands(kind)
    given = inputs if batch_first else reordered(inputs)
    q, k = torch.randn(BATCH, HEADS, QUERIES, 6), torch.randn(BATCH, HEADS, inputs[1].shape[1], 6)
    with torch.set_grad_enabled(grad):
        with listening(module, lambda call: replace(call, q=q, k=k)):
            output = module(*given, need_weights=False)[0]
        attended = softmax(q, k) @ by_hand(module, *inputs)[2]
        expected = module.out_proj(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output if batch_first else output.transpose(0, 1), expected, atol=1e-5, rtol=1e-4)


def test_maps_that_are_asked_for_are_those_of_the_operands_that_a_listener_gives() -> None:
    module = attention(batch_first=True)
    q, k = torch.randn(2, BATCH, HEADS, QUERIES, 6)
    with listening(module, lambda call: replace(call, q=q, k=k)):
        weights = module(*operands("self"), need_weights=True, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, softmax(q, k))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "three"])
def test_gradients_of_a_loss_on_the_operands_are_those_of_the_projections(kind: str, need_weights: bool) -> None:
    """As of the pooling head of Hugging Face's SigLIP, whose one query is a parameter."""
    module = attention(batch_first=True).double().train()
    plain = copy.deepcopy(module)
    inputs = [x.double().requires_grad_() for x in operands(kind)]
    calls: list[AttentionCall] = []

    def hear(call: AttentionCall) -> AttentionCall:
        calls.append(call)
        return call

    with listening(module, hear):
        output = module(*inputs, need_weights=need_weights)[0]
    parameters = [module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, inputs[0]]
    actual = torch.autograd.grad(output.sum() + calls[0].maps().square().sum(), parameters)
    q, k, v = by_hand(plain, *inputs)
    maps = softmax(q, k)
    loss = plain.out_proj((maps @ v).transpose(1, 2).flatten(2)).sum() + maps.square().sum()
    parameters = [plain.in_proj_weight, plain.in_proj_bias, plain.out_proj.weight, inputs[0]]
    for wanted, gradient in zip(torch.autograd.grad(loss, parameters), actual, strict=True):
        torch.testing.assert_close(gradient, wanted)


MASKS = {
    "key_padding_mask": torch.zeros(BATCH, QUERIES, dtype=torch.bool),
    "attn_mask": torch.zeros(QUERIES, QUERIES),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("training", [False, True])
def test_masks_are_refused(mask: str, training: bool) -> None:
    module = attention(batch_first=True).train(training)
    query = torch.randn(BATCH, QUERIES, WIDTH)
    with pytest.raises(UserError, match="with masks is not supported"), listening(module, lambda call: call):
        module(query, query, query, **{mask: MASKS[mask]})
    assert "forward" not in vars(module)


def test_causal_attention_is_refused() -> None:
    module = attention(batch_first=True)
    query, mask = torch.randn(BATCH, QUERIES, WIDTH), torch.zeros(QUERIES, QUERIES)
    with pytest.raises(UserError, match="with masks is not supported"), listening(module, lambda call: call):
        module(query, query, query, attn_mask=mask, is_causal=True)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 12, "vdim": 12}])
def test_other_keys_than_those_of_the_tokens_are_refused(options: dict[str, Any]) -> None:
    module = attention(batch_first=True, **options)
    key = torch.randn(BATCH, KEYS, options.get("kdim", WIDTH))
    with pytest.raises(UserError, match="extra keys or other widths"), listening(module, lambda call: call):
        module(torch.randn(BATCH, QUERIES, WIDTH), key, key)
