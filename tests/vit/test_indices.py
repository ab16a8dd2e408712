from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._features import feature_take_indices

from attention_transfer.errors import UserError
from attention_transfer.vit import select


@settings(deadline=None, max_examples=50)
@given(total=st.integers(1, 12), data=st.data())
def test_choices_mean_what_they_mean_in_timm(total: int, data: st.DataObject) -> None:
    number = st.integers(1, total)
    several = st.lists(st.integers(-total, total - 1), min_size=1)
    choice = data.draw(st.none() | number | several)
    assert select(choice, total, "layers") == tuple(sorted(set(feature_take_indices(total, choice)[0])))


def test_an_integer_takes_the_last_ones_and_a_list_names_them() -> None:
    assert select(2, 5, "layers") == (3, 4)
    assert select([2], 5, "layers") == (2,)
    assert select(None, 3, "layers") == (0, 1, 2)


def test_a_layer_named_twice_counts_once_and_order_does_not_matter() -> None:
    assert select([-1, 0, 4, 2], 5, "layers") == (0, 2, 4)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([5, 0, -6], r"heads \[5, -6\] do not exist; choose from -5 to 4"),
        (0, "heads=0 .* choose from 1 to 5"),
        (6, "heads=6 .* choose from 1 to 5"),
        (-1, "heads=-1 .* choose from 1 to 5"),
        ([], "heads is empty.* from -5 to 4"),
    ],
)
def test_a_choice_outside_the_model_is_refused_with_both_bounds(choice: int | list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(choice, 5, "heads")
