from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.attention import attention_cross_entropy, attention_kl, class_logit_l2, logit_l2

Array = NDArray[np.float64]
Loss = Callable[..., Tensor]
ALL: list[Loss] = [attention_cross_entropy, attention_kl, logit_l2, class_logit_l2]
each_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)
SEED = st.integers(0, 9999)


def operands(seed: int = 0, d_s: int = 3, d_t: int = 3, n: int = 3, m: int = 4) -> list[Tensor]:
    """q_s, k_s, q_t, k_t in float64: 2 images, 2 heads."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, d_s), (m, d_s), (n, d_t), (m, d_t)]
    return [torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def reference(loss: Loss, logits_s: Array, logits_t: Array) -> Array:
    """Each loss written down a second time, from logits, without any -inf."""

    def log_softmax(x: Array) -> Array:
        result: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return result

    log_s, log_t = log_softmax(logits_s), log_softmax(logits_t)
    values: dict[Loss, Any] = {
        attention_cross_entropy: -(np.exp(log_t) * log_s).sum(-1),
        attention_kl: (np.exp(log_t) * (log_t - log_s)).sum(-1),
        logit_l2: ((logits_s - logits_t) ** 2).sum(-1),
        class_logit_l2: ((logits_s - logits_t) ** 2).sum(-1)[:, :, 0],
    }
    expected: Array = values[loss]
    return expected


def test_two_tokens_worked_by_hand() -> None:
    """Scale 1 and one dimension: row 0 has P_t = (3/4, 1/4) and P_s = (1/5, 4/5), row 1 has both halves."""
    q = torch.tensor([[[[1.0], [0.0]]]], dtype=torch.float64)
    k_s = torch.tensor([[[[0.0], [math.log(4)]]]], dtype=torch.float64)
    k_t = torch.tensor([[[[math.log(3)], [0.0]]]], dtype=torch.float64)
    cross_entropy = [-0.75 * math.log(0.2) - 0.25 * math.log(0.8), math.log(2)]
    kl = [0.75 * math.log(0.75 / 0.2) + 0.25 * math.log(0.25 / 0.8), 0.0]
    distance = math.log(3) ** 2 + math.log(4) ** 2
    assert attention_cross_entropy(q, k_s, q, k_t)[0, 0].tolist() == pytest.approx(cross_entropy)
    assert attention_kl(q, k_s, q, k_t)[0, 0].tolist() == pytest.approx(kl)
    assert logit_l2(q, k_s, q, k_t)[0, 0].tolist() == pytest.approx([distance, 0.0])
    assert class_logit_l2(q, k_s, q, k_t).tolist() == [[pytest.approx(distance)]]


@each_loss
@pytest.mark.parametrize(("scale_s", "scale_t"), [(None, None), (0.2, 1.5)])
def test_matches_numpy_with_other_dimensions_scales_and_biases_on_the_two_sides(
    loss: Loss, scale_s: float | None, scale_t: float | None
) -> None:
    q_s, k_s, q_t, k_t = operands(seed=1, d_s=2, d_t=5)
    mask_s, mask_t = torch.randn(1, 2, 3, 4).double(), torch.randn(2, 1, 3, 4).double()
    logits_s = np.einsum("bhnd,bhmd->bhnm", q_s, k_s) * (scale_s or 2**-0.5) + mask_s.numpy()
    logits_t = np.einsum("bhnd,bhmd->bhnm", q_t, k_t) * (scale_t or 5**-0.5) + mask_t.numpy()
    actual = loss(q_s, k_s, q_t, k_t, scale_s=scale_s, scale_t=scale_t, mask_s=mask_s, mask_t=mask_t)
    np.testing.assert_allclose(actual, reference(loss, logits_s, logits_t), rtol=1e-10)


@each_loss
@pytest.mark.parametrize("masked", ["none", "bool", "additive"])
def test_gradients_pass_gradcheck(loss: Loss, masked: str) -> None:
    allowed = torch.tensor([True, False, True, True])
    masks = {
        "none": None,
        "bool": allowed.expand(1, 1, 3, 4),
        "additive": torch.zeros(1, 1, 3, 4).double().masked_fill(~allowed, -math.inf),
    }
    mask = masks[masked]
    inputs = [tensor.requires_grad_() for tensor in operands(seed=2, d_s=2)]
    assert torch.autograd.gradcheck(lambda *qk: loss(*qk, mask_s=mask, mask_t=mask), inputs)


@each_loss
@pytest.mark.parametrize("additive", [False, True])
def test_a_key_masked_on_both_sides_counts_as_if_it_were_not_there(loss: Loss, additive: bool) -> None:
    q_s, k_s, q_t, k_t = (tensor.float().requires_grad_() for tensor in operands(seed=3))
    mask = torch.tensor([True, True, False, True]).expand(1, 1, 3, 4)
    if additive:
        mask = torch.zeros(1, 1, 3, 4).masked_fill(~mask, -math.inf)
    value = loss(q_s, k_s, q_t, k_t, mask_s=mask, mask_t=mask)
    left = [0, 1, 3]
    torch.testing.assert_close(value, loss(q_s, k_s[:, :, left], q_t, k_t[:, :, left]))
    gradients = torch.autograd.grad(value.sum(), [q_s, k_s])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(gradients[1][:, :, 2], torch.zeros(2, 2, 3))


@pytest.mark.parametrize("loss", [attention_cross_entropy, attention_kl])
def test_a_key_the_teacher_masks_costs_the_student_nothing_but_its_own_weight(loss: Loss) -> None:
    q_s, k_s, q_t, k_t = operands(seed=4)
    mask_t = torch.tensor([True, True, False, True]).expand(1, 1, 3, 4)
    value = loss(q_s, k_s, q_t, k_t, mask_t=mask_t)
    # The student's own softmax still runs over all four keys.
    log_p_s = (q_s @ k_s.mT * 3**-0.5).log_softmax(-1)[..., [0, 1, 3]]
    log_p_t = (q_t @ k_t.mT * 3**-0.5)[..., [0, 1, 3]].log_softmax(-1)
    expected = -(log_p_t.exp() * log_p_s).sum(-1)
    if loss is attention_kl:
        expected = expected + (log_p_t.exp() * log_p_t).sum(-1)
    torch.testing.assert_close(value, expected)


@settings(deadline=None, max_examples=25)
@given(seed=SEED, spread=st.sampled_from([0.1, 1.0, 10.0]))
def test_kl_is_never_negative_and_zero_where_the_maps_agree(seed: int, spread: float) -> None:
    q_s, k_s, q_t, k_t = (tensor * spread for tensor in operands(seed))
    assert (attention_kl(q_s, k_s, q_t, k_t) > -1e-12).all()
    # A constant added to a row of logits changes the logits but not the map.
    same = attention_kl(q_t, k_t, q_t, k_t, mask_s=torch.full((1, 1, 3, 4), 2.5).double())
    torch.testing.assert_close(same, torch.zeros_like(same))


@settings(deadline=None, max_examples=25)
@given(seed=SEED)
def test_cross_entropy_is_least_where_the_student_agrees_with_the_teacher(seed: int) -> None:
    q_s, k_s, q_t, k_t = operands(seed)
    assert (attention_cross_entropy(q_s, k_s, q_t, k_t) >= attention_cross_entropy(q_t, k_t, q_t, k_t) - 1e-12).all()


@settings(deadline=None, max_examples=25)
@given(seed=SEED)
def test_kl_and_cross_entropy_have_the_same_gradient_for_the_student(seed: int) -> None:
    q_s, k_s, q_t, k_t = operands(seed)
    student = [q_s.requires_grad_(), k_s.requires_grad_()]
    kl = torch.autograd.grad(attention_kl(q_s, k_s, q_t, k_t).sum(), student)
    cross_entropy = torch.autograd.grad(attention_cross_entropy(q_s, k_s, q_t, k_t).sum(), student)
    torch.testing.assert_close(kl, cross_entropy)
    assert kl[0].abs().max() > 0


@each_loss
@pytest.mark.parametrize("which", [0, 1], ids=["queries", "keys"])
def test_other_numbers_of_tokens_on_the_two_sides_are_refused(loss: Loss, which: int) -> None:
    inputs = operands()
    inputs[which] = inputs[which][:, :, 1:]
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        loss(*inputs)


@each_loss
def test_other_heads_are_refused_and_not_broadcast(loss: Loss) -> None:
    q_s, k_s, q_t, k_t = operands()
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        loss(q_s, k_s, q_t[:, :1], k_t[:, :1])
