from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe

Build = Callable[..., Any]


def test_shape_input_and_head_of_a_plain_vit(tiny_vit: Build) -> None:
    spec = describe(tiny_vit(img_size=(8, 16), patch_size=2, pretrained_cfg_overlay={"mean": (0.1,), "std": (0.4,)}))
    assert (spec.depth, spec.heads, spec.head_dim, spec.width, spec.classes) == (3, 3, 8, 24, 5)
    assert (spec.image_size, spec.grid, spec.channels) == ((8, 16), (4, 8), 1)
    assert (spec.mean, spec.std) == ((0.1,), (0.4,))
    assert (spec.prefix_tokens, spec.class_token, spec.components) == (1, True, frozenset())
    assert spec.name == "vit_tiny_patch16_224"


def test_a_grey_model_takes_the_mean_of_the_colours_statistics(tiny_vit: Build) -> None:
    spec = describe(tiny_vit(name="deit3_small_patch16_224"))
    assert list(spec.mean) == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert list(spec.std) == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    colour = describe(tiny_vit(name="deit3_small_patch16_224", in_chans=3))
    assert colour.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "components", "prefix_tokens", "class_token"),
    [
        ("deit3_small_patch16_224", {"LayerScale"}, 1, True),
        ("vit_small_patch14_reg4_dinov2", {"LayerScale", "registers"}, 5, True),
        ("vit_small_patch16_dinov3", {"LayerScale", "registers", "RoPE"}, 5, True),
        ("deit_tiny_distilled_patch16_224", {"distillation token"}, 2, True),
        ("eva02_tiny_patch14_224", {"RoPE", "gated MLP"}, 1, True),
        ("vit_base_patch16_clip_224", {"pre-norm"}, 1, True),
        ("vit_base_patch16_siglip_224", set(), 0, False),
        ("beit_base_patch16_224", {"LayerScale", "relative position bias"}, 1, True),
        ("vit_relpos_small_patch16_224", {"LayerScale", "relative position bias"}, 0, False),
    ],
)
def test_components_and_tokens_of_each_family(
    name: str, components: set[str], prefix_tokens: int, class_token: bool, tiny_vit: Build
) -> None:
    spec = describe(tiny_vit(name=name))
    assert spec.components == components
    assert (spec.prefix_tokens, spec.class_token) == (prefix_tokens, class_token)
    assert (spec.depth, spec.heads, spec.head_dim, spec.width) == (3, 3, 8, 24)


def test_qk_norm_is_a_component(tiny_vit: Build) -> None:
    assert describe(tiny_vit(qk_norm=True)).components == {"q/k norm"}


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p8_224"])
def test_attention_of_another_kind_is_refused_in_a_sentence(name: str) -> None:
    """Talking-head and cross-covariance attention have `.blocks[i].attn` too, but no q·kᵀ over tokens to see."""
    model = timm.create_model(name, img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    with pytest.raises(UserError, match="supported"):
        describe(model)


def test_what_is_no_vit_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no supported attention"):
        describe(nn.Linear(2, 2))
