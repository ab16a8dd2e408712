from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import POOL, AttentionCall, Tokens, capture

Build = Callable[..., Any]

PREFIXES: list[tuple[str, ...]] = [(), ("class",), ("class", "distillation"), ("class", *("register",) * 3)]
MASKS = ["none", "bias of each head", "one bias", "bias of each key", "flat", "masked keys"]


def call_of(prefix: tuple[str, ...], patches: int, suffix: int, mask: str, seed: int = 0) -> AttentionCall:
    """Random operands in float64: 2 images, 3 heads of 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = len(prefix) + patches + suffix
    masks = {
        "none": None,
        "bias of each head": random(1, 3, n, n),
        "one bias": random(n, n),
        "bias of each key": random(2, 1, 1, n),
        "flat": random(n),
        "masked keys": random(2, 1, 1, n) > 0,
    }
    q, k, v = (random(2, 3, n, 4) for _ in range(3))
    return AttentionCall(q, k, v, masks[mask], 0.4, 1, Tokens(prefix, suffix))


def naive_logits(call: AttentionCall) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All rows, by einsum."""
    logits = np.einsum("bhnd,bhmd->bhnm", call.q.numpy(), call.k.numpy()) * call.scale
    if call.mask is None:
        return np.asarray(logits)
    mask = call.mask.numpy()
    return np.asarray(np.where(mask, logits, -np.inf) if mask.dtype == bool else logits + mask)


calls = st.builds(
    call_of,
    st.sampled_from(PREFIXES),
    st.integers(1, 6),
    st.integers(0, 2),
    st.sampled_from(MASKS),
    st.integers(0, 999),
)


@settings(deadline=None)
@given(calls)
def test_the_mean_row_is_the_mean_of_the_patches_rows(call: AttentionCall) -> None:
    """Prefix and suffix tokens are left out; a relative position bias is averaged with the rest."""
    prefix, suffix = len(call.tokens.prefix), call.tokens.suffix
    rows = naive_logits(call)[:, :, prefix : call.q.shape[2] - suffix]
    row = call.query_row("mean")
    assert row.q.shape == (2, 3, 1, 4)
    torch.testing.assert_close(row.logits(), torch.from_numpy(rows.mean(axis=2, keepdims=True)))
    torch.testing.assert_close(call.class_logits(query="mean"), torch.from_numpy(rows.mean(axis=2)))


@settings(deadline=None)
@given(calls)
def test_the_class_row_is_the_first_row_where_there_is_a_class_token(call: AttentionCall) -> None:
    if not call.tokens.class_token:
        with pytest.raises(UserError, match='no class token; choose query="mean", or "pool"'):
            call.class_logits()
        return
    expected = torch.from_numpy(naive_logits(call)[:, :, 0])
    torch.testing.assert_close(call.class_logits(), expected)
    assert torch.equal(call.class_logits(), call.query_row().logits()[:, :, 0])
    torch.testing.assert_close(call.query_row("class").maps(), call.maps()[:, :, :1], equal_nan=True)


def test_a_row_has_the_calls_keys_values_scale_and_layer() -> None:
    call = call_of(("class",), 4, 0, "one bias")
    for query in ("class", "mean"):
        row = call.query_row(query)
        assert row.k is call.k
        assert row.v is call.v
        assert (row.scale, row.layer, row.tokens) == (call.scale, call.layer, call.tokens)
        assert row.mask is not None
        assert row.mask.shape == (1, 5)


def test_a_mean_over_rows_that_are_masked_differently_is_refused() -> None:
    call = call_of(("class",), 4, 0, "none")
    masked = AttentionCall(call.q, call.k, call.v, torch.eye(5, dtype=torch.bool), 1.0, 0)
    with pytest.raises(UserError, match="rows are masked differently"):
        masked.query_row("mean")
    assert masked.class_logits().isneginf().sum() == 2 * 3 * 4


def test_a_block_has_no_pooling_row() -> None:
    with pytest.raises(UserError, match='block 1 has no row for query="pool"'):
        call_of(("class",), 4, 0, "none").query_row("pool")


@pytest.mark.parametrize("query", ["class", "mean"])
def test_a_pooling_head_has_no_other_row_than_its_own(query: Any) -> None:
    q, k = torch.randn(2, 3, 1, 4), torch.randn(2, 3, 9, 4)
    pooling = AttentionCall(q, k, k, None, 0.5, POOL)
    assert pooling.query_row("pool") is pooling
    torch.testing.assert_close(pooling.class_logits(query="pool"), 0.5 * (q @ k.mT)[:, :, 0])
    with pytest.raises(UserError, match=f'the attention-pool head has no row for query="{query}"'):
        pooling.query_row(query)


def test_a_pooling_head_of_several_queries_has_no_one_row() -> None:
    q = torch.randn(2, 3, 2, 4)
    with pytest.raises(UserError, match='the attention-pool head has no row for query="pool"'):
        AttentionCall(q, q, q, None, 0.5, POOL).query_row("pool")


@pytest.mark.parametrize(
    ("name", "options", "patches"),
    [
        ("vit_relpos_small_patch16_224", {}, slice(0, 4)),
        ("vit_relpos_small_patch16_224", {"class_token": True}, slice(1, 5)),
        ("beit_base_patch16_224", {}, slice(1, 5)),
        ("vit_small_patch14_reg4_dinov2", {}, slice(5, 9)),
        ("deit_tiny_distilled_patch16_224", {}, slice(2, 6)),
    ],
)
def test_rows_of_real_blocks_are_those_of_their_logits(
    name: str, options: Any, patches: slice, tiny_vit: Build, images: Tensor
) -> None:
    model: nn.Module = tiny_vit(1, name, **options)
    with capture(model) as seen, torch.no_grad():
        model(images)
    for call in seen:
        logits = call.logits()
        torch.testing.assert_close(call.class_logits(query="mean"), logits[:, :, patches].mean(dim=2))
        if patches.start:
            torch.testing.assert_close(call.class_logits(), logits[:, :, 0])


def test_siglip_has_a_mean_row_in_its_blocks_and_a_row_of_its_pooling_head(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit(1, "vit_base_patch16_siglip_224")
    with capture(model, pool=True) as seen, torch.no_grad():
        model(images)
    assert [call.layer for call in seen] == [0, 1, 2, POOL]
    torch.testing.assert_close(seen[0].class_logits(query="mean"), seen[0].logits().mean(dim=2))
    pool = model.attn_pool
    tokens_BNC = model.forward_features(images)
    keys = pool.kv(tokens_BNC)[..., :24].unflatten(-1, (3, 8))
    queries = pool.q(pool.latent).unflatten(-1, (3, 8))[0, 0]
    expected = torch.einsum("hd,bnhd->bhn", queries, keys) / 8**0.5
    torch.testing.assert_close(seen[-1].class_logits(query="pool"), expected.detach(), atol=1e-5, rtol=1e-5)
