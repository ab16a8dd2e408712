from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.attention import attention_logits, attention_maps, class_logits

Array = NDArray[np.float64]
SIZE = st.integers(1, 4)


def reference_logits(q: Tensor, k: Tensor, scale: float | None, mask: Tensor | None) -> Array:
    factor = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    logits: Array = np.einsum("bhnd,bhmd->bhnm", q.double().numpy(), k.double().numpy()) * factor
    if mask is None:
        return logits
    values: NDArray[Any] = mask.numpy()
    return np.where(values, logits, -np.inf) if mask.dtype == torch.bool else logits + values


def reference_maps(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    maps: Array = weights / weights.sum(axis=-1, keepdims=True)
    return maps


def some_mask(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    if kind == "bool":
        mask = torch.rand(shape, generator=generator) < 0.5
        mask[..., 0] = True  # a row without any key has no softmax
        return mask
    return torch.randn(shape, generator=generator, dtype=torch.float64) if kind == "additive" else None


@settings(deadline=None, max_examples=25)
@given(
    b=SIZE,
    h=SIZE,
    n=SIZE,
    m=SIZE,
    d=SIZE,
    seed=st.integers(0, 999),
    scale=st.sampled_from([None, 0.3, 2.0]),
    kind=st.sampled_from(["none", "bool", "additive"]),
    shared=st.booleans(),
)
def test_logits_maps_and_class_row_match_numpy(
    b: int, h: int, n: int, m: int, d: int, seed: int, scale: float | None, kind: str, shared: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(b, h, n, d, generator=generator, dtype=torch.float64)
    k = torch.randn(b, h, m, d, generator=generator, dtype=torch.float64)
    mask = some_mask(kind, (1, 1, n, m) if shared else (b, h, n, m), generator)
    expected = reference_logits(q, k, scale, mask)
    np.testing.assert_allclose(attention_logits(q, k, scale=scale, mask=mask).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(attention_maps(q, k, scale=scale, mask=mask), reference_maps(expected), atol=1e-12)
    np.testing.assert_allclose(class_logits(q, k, scale=scale, mask=mask), expected[:, :, 0], atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (4, 5), (1, 5), (5,), (2, 1, 1, 5), (4, 1)], ids=str)
def test_class_row_is_row_0_under_a_mask_of_any_broadcastable_shape(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 4, 6, generator=generator), torch.randn(2, 3, 5, 6, generator=generator)
    mask = torch.randn(shape, generator=generator)
    row = class_logits(q, k, mask=mask)
    assert row.shape == (2, 3, 5)
    torch.testing.assert_close(row, attention_logits(q, k, mask=mask)[:, :, 0])


def test_maps_are_those_of_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 3, 4, 6, generator=generator), torch.randn(2, 3, 4, 6, generator=generator)
    mask = torch.randn(1, 3, 4, 4, generator=generator)
    # With the identity as values, attention gives back its own map.
    values = torch.eye(4).expand(2, 3, 4, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, values, mask, scale=0.7)
    torch.testing.assert_close(attention_maps(q, k, scale=0.7, mask=mask), expected)


def test_a_masked_key_gets_no_weight_and_the_rest_sums_to_one() -> None:
    q, k = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 3, 3)
    maps = attention_maps(q, k, mask=torch.tensor([True, False, True]).expand(1, 1, 2, 3))
    assert torch.equal(maps[..., 1], torch.zeros(1, 1, 2))
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 1, 2))


def test_half_precision_stays_half_precision() -> None:
    q = torch.randn(1, 1, 2, 4).bfloat16()
    assert attention_logits(q, q).dtype == torch.bfloat16
