"""The same results a tile of query rows at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_transfer.attention import AttentionCall, attention_cross_entropy, tiles
from attention_transfer.attention.operands import tile_rows
from attention_transfer.attention.tiles import in_tiles

N, M = 37, 5


def of_shape(b: int, h: int, n: int, m: int, d: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys that take no memory."""
    return torch.empty(1).expand(b, h, n, d), torch.empty(1).expand(b, h, m, d)


def sides(mask_s: Tensor | None = None, mask_t: Tensor | None = None) -> tuple[AttentionCall, AttentionCall]:
    """Two images, three heads, 37 queries, 5 keys; other widths and scales on the two sides."""
    q_s, k_s = torch.randn(2, 3, N, 4, dtype=torch.float64), torch.randn(2, 3, M, 4, dtype=torch.float64)
    q_t, k_t = torch.randn(2, 3, N, 2, dtype=torch.float64), torch.randn(2, 3, M, 2, dtype=torch.float64)
    return AttentionCall.of(q_s, k_s, None, mask_s), AttentionCall.of(q_t, k_t, 0.3, mask_t)


@settings(deadline=None)
@given(b=st.integers(1, 256), h=st.integers(1, 16), n=st.integers(1, 5000), m=st.integers(1, 5000))
def test_a_tile_has_at_least_sixteen_rows_and_fits_a_core_where_it_can(b: int, h: int, n: int, m: int) -> None:
    rows = tile_rows(*of_shape(b, h, n, m))
    assert rows == 16 or 16 < rows <= n
    assert rows == 16 or b * h * rows * m <= 1 << 20
    # And no smaller than it need be: one row more would not fit, or there is none.
    assert rows >= n or b * h * (rows + 1) * m > 1 << 20


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 1, 197, 197), 197),  # all of a small map
        ((16, 6, 197, 197), 55),
        ((64, 12, 1370, 1370), 16),
        ((1, 1, 1 << 20, 1 << 10), 1 << 10),
        ((1, 1, 4, 4), 16),
        ((0, 1, 100, 100), 100),
    ],
    ids=str,
)
def test_rows_of_some_tiles(shape: tuple[int, int, int, int], rows: int) -> None:
    assert tile_rows(*of_shape(*shape)) == rows


def test_tiles_are_larger_where_there_is_no_cache_to_fit_in() -> None:
    q = torch.empty(1, 1, 1 << 20, 1, device="meta")
    assert tile_rows(q, torch.empty(1, 1, 1 << 10, 1, device="meta")) == 1 << 14


MASKS = [(2, 3, N, M), (2, 1, N, M), (1, 1, 1, M), (2, 1, 1, M), (3, N, M), (1, N, M), (N, M), (N, 1), (1, M), (M,), ()]


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("boolean", [False, True], ids=["additive", "boolean"])
def test_a_tile_of_a_side_has_its_rows_of_a_mask_of_any_broadcastable_shape(
    shape: tuple[int, ...], boolean: bool
) -> None:
    mask = torch.rand(shape) < 0.7 if boolean else torch.randn(shape, dtype=torch.float64)
    side, _ = sides(mask)
    torch.testing.assert_close(side.rows(slice(16, 32)).wide_logits(), side.wide_logits()[:, :, 16:32])
    torch.testing.assert_close(side.rows(slice(32, 48)).wide_logits(), side.wide_logits()[:, :, 32:])


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize("size", [1, 16, 36, 37, 50])
def test_tiles_of_any_size_make_the_whole_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], size: int
) -> None:
    """37 rows: also where the last tile has a single one."""
    monkeypatch.setattr(tiles, "tile_rows", lambda q, k: size)
    mask = torch.randn(shape, dtype=torch.float64).requires_grad_()
    s, t = sides(mask, mask.detach().flip(-1) if shape else None)
    inputs = [x.requires_grad_() for x in (s.q, s.k, t.q, t.k)] + [mask]

    def compute(a: AttentionCall, b: AttentionCall) -> tuple[Tensor, Tensor]:
        logits = a.wide_logits() * b.wide_logits().sigmoid()
        return logits.sum(-1), logits @ b.k

    whole, tiled = compute(s, t), in_tiles(compute, s, t)
    torch.testing.assert_close(tiled, whole)
    weights = [torch.randn_like(x) for x in whole]
    torch.testing.assert_close(torch.autograd.grad(tiled, inputs, weights), torch.autograd.grad(whole, inputs, weights))


def test_what_compute_reads_beside_the_sides_gets_its_gradient_from_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_rows", lambda q, k: 16)
    s, t = sides()
    values = torch.randn(2, 3, M, 3, dtype=torch.float64).requires_grad_()
    (tiled,) = in_tiles(lambda a, b: (a.wide_logits() @ values,), s, t)
    whole = s.wide_logits() @ values
    torch.testing.assert_close(torch.autograd.grad(tiled.sum(), values), torch.autograd.grad(whole.sum(), values))


@pytest.mark.parametrize("grad", [False, True])
def test_tiles_are_computed_again_only_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    monkeypatch.setattr(tiles, "tile_rows", lambda q, k: 16)
    s, t = sides()
    s.q.requires_grad_()
    seen: list[int] = []

    def compute(a: AttentionCall, b: AttentionCall) -> tuple[Tensor, ...]:
        seen.append(a.q.shape[2])
        return ((a.wide_logits() * b.wide_logits()).sum(-1),)

    with torch.set_grad_enabled(grad):
        (result,) = in_tiles(compute, s, t)
    assert seen == [16, 16, 5]
    if grad:
        result.sum().backward()
        assert sorted(seen) == [5, 5, 16, 16, 16, 16]


def test_the_random_state_is_left_alone() -> None:
    s, t = sides()
    s.q.requires_grad_()
    before = torch.get_rng_state()
    in_tiles(lambda a, b: (a.wide_logits().sum(-1),), s, t)[0].sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_second_derivatives_go_through_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_rows", lambda q, k: 2)
    inputs = [torch.randn(1, 1, n, 2, dtype=torch.float64).requires_grad_() for n in (3, 4, 3, 4)]
    assert torch.autograd.gradgradcheck(lambda *qk: attention_cross_entropy(*qk, impl="chunked"), inputs)


def test_no_rows_give_an_empty_result() -> None:
    q, k = torch.randn(1, 1, 0, 2), torch.randn(1, 1, 3, 2)
    assert attention_cross_entropy(q, k, q, k, impl="chunked").shape == (1, 1, 0)


def test_rows_without_any_keys_are_zero() -> None:
    q, k = torch.randn(1, 1, 3, 2), torch.randn(1, 1, 0, 2)
    assert attention_cross_entropy(q, k, q, k, impl="chunked").tolist() == [[[0.0, 0.0, 0.0]]]
