"""What `explore` is told: every mistake at once, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import attention_transfer as at
from attention_transfer.config.explore import Explore
from attention_transfer.errors import UserError
from attention_transfer.explorer.album import offered_data, offered_files
from attention_transfer.explorer.opening import loaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": list("abcde")}, "5 networks are named; name at most 4"),
        ({"models": ["a", "a"]}, "a is named twice; name each model once"),
        ({"port": 70_000}, "port is 70000; choose one from 0 to 65535"),
        ({"limit": 0}, "limit is 0; give at least 1 image"),
        ({"images": ["x.png"], "data": "digits"}, "data has no effect where images are named"),
        ({"layers": 2}, "layers is of the file that html names"),
        ({"overwrite": True}, "overwrite is of the file that html names"),
        ({"html": "x.html", "open": True}, "open is of a page that is served"),
        ({"html": "x.png"}, "x.png does not end in .html"),
        ({"html": "there/is/none/x.html"}, "there is no folder"),
        ({"images": ["none.png"]}, "none.png"),
        ({"models": ["builtin/vit_digits"], "uploads": False}, "has no weights of its own"),
    ],
)
def test_mistakes_are_said_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        at.explore(**settings)


def test_words_are_networks_or_images(pictures: Path) -> None:
    words = ["timm/vit_tiny", str(pictures), "*.jpg", "a.png", "runs/gta"]
    found = Explore.sorted_words(words)
    assert found == {"models": ["timm/vit_tiny", "runs/gta"], "images": [str(pictures), "*.jpg", "a.png"]}


def test_images_that_can_not_be_read_are_left_out_and_named(pictures: Path) -> None:
    (pictures / "ant" / "z.png").write_bytes(b"no image")
    found, notes = offered_files([str(pictures)], None)
    assert [picture.name for picture in found] == ["ant/a.png", "ant/b.png", "bee/c.png"]
    assert len(notes) == 1
    assert "z.png is not an image" in notes[0]
    with pytest.raises(UserError, match=r"z\.png is not an image"):
        offered_files([str(pictures / "ant" / "z.png")], None)


def test_few_of_many_images_are_offered_at_even_distances(pictures: Path) -> None:
    found, notes = offered_files([str(pictures)], 2)
    assert [picture.name for picture in found] == ["ant/a.png", "bee/c.png"]
    assert notes == ["2 of 3 images are offered, at even distances"]
    digits = offered_data("digits", "test", 3)
    assert digits[0].name == "test 0"
    assert digits[0].open().size == digits[0].size == (8, 8)


def test_without_words_the_built_in_network_sees_its_scenes() -> None:
    explorer = loaded(Explore(limit=2))
    assert [network.label for network in explorer.networks] == ["vit_characters"]
    assert len(explorer.offered) == 2
    assert loaded(Explore(limit=2, uploads=False)).room is None
