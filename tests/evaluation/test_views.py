"""What a token attends to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attention_transfer import UserError, capture, evaluation, rollout
from attention_transfer.data import eval_transform
from attention_transfer.evaluation import attention_rows, seen
from attention_transfer.vit import describe

Maps = Callable[[nn.Module, Tensor], list[Tensor]]


def test_rows_are_those_of_the_maps(tiny_vit: Callable[..., Any], unfused_maps: Maps, images: Tensor) -> None:
    model = tiny_vit(reg_tokens=2)
    maps = unfused_maps(model, images[:1])
    for layer in (0, -1):
        for token in range(7):
            torch.testing.assert_close(attention_rows(model, images[:1], layer, token), maps[layer][0, :, token])
        torch.testing.assert_close(attention_rows(model, images[:1], layer, "class"), maps[layer][0, :, 0])
    with capture(model) as calls:
        model(images[:1])
    mean_HN = calls[1].logits()[0, :, 3:].mean(dim=1).softmax(dim=-1)
    torch.testing.assert_close(attention_rows(model, images[:1], 1, "mean"), mean_HN)


def test_no_module_of_the_room_hides_a_function_of_its_name() -> None:
    """A module that is loaded becomes an attribute of its package, where names are otherwise looked up when used."""
    modules = {path.stem for path in Path(evaluation.__file__).parent.glob("*.py")}
    assert modules & {*evaluation.__all__} == set()


def test_an_image_is_seen_as_in_evaluation(tiny_vit: Callable[..., Any]) -> None:
    model = tiny_vit(img_size=64, patch_size=16, in_chans=3)
    image = Image.effect_noise((200, 100), 50)
    pixels, placement = seen(describe(model), image)
    assert torch.equal(pixels[0], eval_transform(describe(model))(image))
    assert placement.size == (200, 100)
    assert placement.box[2] - placement.box[0] == pytest.approx(100 * 0.875, abs=1)


def test_a_token_or_layer_that_there_is_not_has_its_sentence(tiny_vit: Callable[..., Any], images: Tensor) -> None:
    model = tiny_vit(class_token=False, global_pool="avg")
    with pytest.raises(UserError, match="there is no token 4; choose from 0 to 3"):
        attention_rows(model, images[:1], 0, 4)
    with pytest.raises(UserError, match=r"layers \[3\] do not exist; choose from -3 to 2"):
        attention_rows(model, images[:1], 3, 0)
    with pytest.raises(UserError, match='there is no class token; choose query="mean"'):
        attention_rows(model, images[:1], 0, "class")
    with pytest.raises(UserError, match="there is no token 9; choose from 0 to 3"):
        rollout(model, images[:1], query=9)


def test_rollout_of_a_patch_is_its_row_of_the_product(
    tiny_vit: Callable[..., Any], unfused_maps: Maps, images: Tensor
) -> None:
    model = tiny_vit()
    product = torch.eye(5)
    for maps in unfused_maps(model, images[:1]):
        product = (maps[0].mean(dim=0) + torch.eye(5)) / 2 @ product
    torch.testing.assert_close(rollout(model, images[:1], query=3)[0].flatten(), product[3, 1:])
