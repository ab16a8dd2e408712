"""Choices of layers and heads in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import Copy, Distill, Guide
from attention_transfer.vit import capture, describe, select


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("first 2", (0, 1)),
        ("first 1", (0,)),
        ("first 5", (0, 1, 2, 3, 4)),
        ("last 2", (3, 4)),
        ("last 5", (0, 1, 2, 3, 4)),
        ("every 1", (0, 1, 2, 3, 4)),
        ("every 2", (0, 2, 4)),
        ("every 3", (0, 3)),
        ("every 5", (0,)),
        ("  first 2 ", (0, 1)),
    ],
)
def test_words_choose_from_the_beginning_the_end_or_at_intervals(words: str, chosen: tuple[int, ...]) -> None:
    assert select(words, 5, "layers") == chosen


@given(total=st.integers(1, 30), data=st.data())
def test_words_mean_what_slices_mean(total: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, total))
    everything = tuple(range(total))
    assert select(f"first {number}", total, "layers") == everything[:number]
    assert select(f"last {number}", total, "layers") == everything[-number:] == select(number, total, "layers")
    assert select(f"every {number}", total, "layers") == everything[::number]


@pytest.mark.parametrize(
    "words", ["", "all", "first", "2", "first -1", "first 1.5", "First 2", "first  2", "every two", "first 2 last 2"]
)
def test_other_words_are_refused_with_examples(words: str) -> None:
    with pytest.raises(UserError) as caught:
        select(words, 5, "layers")
    assert str(caught.value) == f'layers is {words!r}; write "first 6", "last 6" or "every 2", or give indices'


@pytest.mark.parametrize("words", ["first 0", "last 0", "every 0", "first 6", "last 6", "every 6"])
def test_numbers_outside_the_model_are_refused_with_both_bounds(words: str) -> None:
    with pytest.raises(UserError) as caught:
        select(words, 5, "heads")
    assert str(caught.value) == f"heads={words!r}: choose a number from 1 to 5"


@pytest.mark.parametrize("rule", [Copy, Distill, Guide])
def test_rules_take_words_for_layers_and_heads(rule: Callable[..., Any], vit: nn.Module) -> None:
    spec = describe(vit)
    chosen = rule(layers="every 2", heads="last 1")
    assert (chosen.chosen_layers(6), chosen.chosen_heads(3)) == ((0, 2, 4), (2,))
    assert chosen.problems(spec, spec) == []
    name = rule(layers="first 4", heads="some").problems(spec, spec)
    assert f"{type(chosen).__name__}.layers='first 4': choose a number from 1 to 3" in name[0]
    assert f"{type(chosen).__name__}.heads is 'some'; write" in name[1]


def test_capture_takes_words(vit: nn.Module, images: Tensor) -> None:
    with capture(vit, layers="every 2") as calls, torch.no_grad():
        vit(images)
    assert [call.layer for call in calls] == [0, 2]
