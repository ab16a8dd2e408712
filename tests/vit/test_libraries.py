"""What a library says of its models beside their shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attention_transfer.errors import UserError
from attention_transfer.vit import anatomy, library_of
from attention_transfer.vit.libraries import find_library, library_names

Build = Callable[..., Any]


def hugging_face() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 8, "patch_size": 4, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=2, **sizes))


def torchvision_vit() -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(8, 4, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=48, num_classes=5)


@pytest.mark.parametrize("name", ["timm", "hf"])
def test_gradient_checkpointing_is_switched_and_told(name: str, tiny_vit: Build) -> None:
    model = tiny_vit() if name == "timm" else hugging_face()
    library = library_of(model)
    assert library is find_library(name)
    assert library.can_recompute(model)
    states = [library.recomputes(model)]
    for on in (True, False):
        library.recompute(model, on=on)
        states.append(library.recomputes(model))
    assert states == [False, True, False]


def test_torchvision_cannot_recompute() -> None:
    model = torchvision_vit()
    assert not library_of(model).can_recompute(model)
    assert not library_of(model).recomputes(model)


def test_tokens_and_positions_do_not_decay(tiny_vit: Build) -> None:
    assert {"cls_token", "pos_embed"} <= set(library_of(vit := tiny_vit()).no_weight_decay(vit))
    vit = torchvision_vit()
    assert set(library_of(vit).no_weight_decay(vit)) == {"class_token", "encoder.pos_embedding"}


def test_projections_are_named_by_what_they_give(tiny_vit: Build) -> None:
    vit = tiny_vit()
    attention = vit.blocks[0].attn
    assert library_of(vit).projections(attention) == {"qkv": [attention.qkv]}
    vit = hugging_face()
    found = library_of(vit).projections(anatomy(vit).attention[0])
    assert set(found) == {"q", "k", "v"}


def test_an_unknown_library_is_refused() -> None:
    assert library_names() == ["timm", "hf", "torchvision"]
    with pytest.raises(UserError, match="there is no library 'tim'; did you mean 'timm'"):
        find_library("tim")
