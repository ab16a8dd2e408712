"""The record of one attention's operands: its parts, rows and heads, and what stands for the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_transfer.attention import POOL, AttentionCall, Query, Tokens
from attention_transfer.errors import UserError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(**changed: Any) -> AttentionCall:
    """Two images, three heads, a class token and two registers before four patches, and a bias."""
    q, k, v = (randn(2, 3, 7, 5, seed=i) for i in range(3))
    tokens = Tokens(prefix=("class", "register", "register"))
    return replace(AttentionCall(q, k, v, randn(1, 3, 7, 7, seed=3), 0.4, 1, tokens), **changed)


def test_two_calls_have_the_same_operands_where_each_is_the_very_same() -> None:
    one = call()
    assert one.same_operands(replace(one, layer=2, dropout=0.1)) is True
    for name in ("q", "k", "v", "mask"):
        assert one.same_operands(replace(one, **{name: getattr(one, name).clone()})) is False
    assert one.same_operands(replace(one, scale=0.5)) is False
    assert one.same_operands(replace(one, mask=None)) is False


SHAPES = [(2, 3, 7, 7), (1, 1, 7, 7), (3, 1, 7), (7, 7), (7, 1), (1, 7), (7,), None]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_row_of_logits_has_the_values_and_gradients_of_the_product(shape: tuple[int, ...] | None) -> None:
    mask = None if shape is None else randn(*shape, seed=4)
    whole = call(mask=mask, q=call().q.requires_grad_(), k=call().k.requires_grad_())
    row = whole.rows(slice(0, 1)).wide_logits()
    expected = whole.logits()[:, :, :1]
    torch.testing.assert_close(row, expected)
    weights = randn(*row.shape, seed=5)
    found = torch.autograd.grad((row * weights).sum(), [whole.q, whole.k])
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), [whole.q, whole.k]))


@pytest.mark.parametrize("shape", [(2, 3, 2, 7), (1, 1, 2, 7), (2, 7), (2, 1)], ids=str)
def test_rows_of_two_queries_take_their_rows_of_a_mask(shape: tuple[int, ...]) -> None:
    two = call(q=randn(2, 3, 2, 5), mask=randn(*shape, seed=4))
    for row in range(2):
        expected = two.logits()[:, :, row : row + 1]
        torch.testing.assert_close(two.rows(slice(row, row + 1)).logits(), expected)
        torch.testing.assert_close(two.rows(torch.tensor([row])).logits(), expected)


@pytest.mark.parametrize("shape", [(2, 2, 7, 7), (1, 2, 1, 7), (2, 1, 1), (1, 1, 7, 7), (2, 1, 7, 7), (7, 7)], ids=str)
@pytest.mark.parametrize("heads", [[1], [1, 0], [0, 1, 1]], ids=str)
def test_chosen_heads_have_the_logits_that_they_had(shape: tuple[int, ...], heads: list[int]) -> None:
    q, k, v = (randn(2, 2, 7, 5, seed=i) for i in range(3))
    whole = call(q=q, k=k, v=v, mask=randn(*shape, seed=4))
    for chosen in (whole.heads(heads), whole.heads(torch.tensor(heads))):
        torch.testing.assert_close(chosen.logits(), whole.logits()[:, heads])
        assert torch.equal(chosen.v, v[:, heads])


def test_the_row_that_stands_for_the_image() -> None:
    one = call()
    logits = one.logits()
    torch.testing.assert_close(one.class_logits(), logits[:, :, 0])
    torch.testing.assert_close(one.class_logits(query="mean"), logits[:, :, 3:].mean(dim=2))
    assert one.query_row("mean").q.shape == (2, 3, 1, 5)
    pool = call(q=randn(2, 3, 1, 5), mask=None, layer=POOL)
    assert pool.query_row("pool") is pool


@pytest.mark.parametrize(
    ("changed", "query", "message"),
    [
        ({}, "pool", 'block 1 has no row for query="pool"'),
        ({"layer": POOL}, "class", 'the attention-pool head has no row for query="class"'),
        ({"layer": POOL}, "mean", 'the attention-pool head has no row for query="mean"'),
        ({"layer": POOL}, "pool", 'the attention-pool head has no row for query="pool"'),  # it has seven
        ({"tokens": Tokens(prefix=("register",))}, "class", "there is no class token"),
        ({"mask": torch.ones(7, 7, dtype=torch.bool)}, "mean", "not defined where rows are masked differently"),
    ],
)
def test_a_row_that_is_not_there_is_refused(changed: dict[str, Any], query: Query, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(**changed).query_row(query)


def test_logits_as_a_call_keep_nothing_of_the_model() -> None:
    one = call()
    alone = one.as_logits()
    torch.testing.assert_close(alone.logits(), one.logits())
    torch.testing.assert_close(alone.wide_logits(), one.logits())
    assert (alone.q.shape, alone.k.shape, alone.v.shape) == ((2, 3, 7, 0), (2, 3, 7, 0), (2, 3, 7, 0))


@pytest.mark.parametrize(
    ("tokens", "words", "patches"),
    [
        (Tokens(), "class", [1, 2, 3, 4, 5, 6]),
        (Tokens(prefix=()), "none", [0, 1, 2, 3, 4, 5, 6]),
        (Tokens(prefix=("class", "register", "register")), "class, 2 × register", [3, 4, 5, 6]),
        (Tokens(prefix=("class", "distillation"), suffix=3), "class, distillation, 3 × detection", [2, 3]),
        (Tokens(prefix=("register",), suffix=1), "register, detection", [1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_tokens_say_what_they_are_and_where_the_patches_lie(tokens: Tokens, words: str, patches: list[int]) -> None:
    assert str(tokens) == words
    assert [*range(7)][tokens.patches(7)] == patches
    assert tokens.class_token is ("class" in words)
