from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attention_transfer.vit import wrong_choices

Colour = Literal["red", "green"]


@dataclass
class Lamp:
    colour: object = "red"
    shade: object = None


def test_every_value_of_a_literal_is_right() -> None:
    for colour in ("red", "green"):
        assert wrong_choices(Lamp(colour), colour=Colour, shade=Colour | None) == []


def test_what_is_wrong_is_named_with_the_nearest_or_all() -> None:
    assert wrong_choices(Lamp("gren", "blue"), colour=Colour, shade=Colour | None) == [
        "Lamp.colour is 'gren'; did you mean 'green'?",
        "Lamp.shade is 'blue'; choose one of: green, red",
    ]


def test_nothing_is_a_value_only_where_it_may_be() -> None:
    assert wrong_choices(Lamp(None), colour=Colour) == ["Lamp.colour is None; choose one of: green, red"]


def test_values_of_other_types_are_wrong_too() -> None:
    assert wrong_choices(Lamp(["red"]), colour=Colour) == ["Lamp.colour is ['red']; did you mean 'red'?"]
