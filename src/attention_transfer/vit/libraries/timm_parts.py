"""What timm's vision transformers are made of."""

from __future__ import annotations

from typing import Any

from timm.layers import GluMlp, LayerScale, SwiGLU
from timm.models.naflexvit import NaFlexVit

from attention_transfer.attention import Tokens
from attention_transfer.vit.libraries.description import missing_part


def tokens(vit: Any) -> Tokens:
    """Kinds of its tokens."""
    prefix: tuple[str, ...] = ()
    if (
        getattr(vit, "cls_token", None) is not None
        or getattr(getattr(vit, "embeds", None), "cls_token", None) is not None
    ):
        prefix += ("class",)
    if getattr(vit, "dist_token", None) is not None:
        prefix += ("distillation",)
    return Tokens(prefix + ("register",) * (int(vit.num_prefix_tokens) - len(prefix)))


def pool_tokens(vit: Any) -> Tokens:
    """The head pools the patches alone, unless it was told otherwise."""
    found = tokens(vit)
    return found if getattr(vit, "pool_include_prefix", True) else Tokens((), found.suffix)


def grid(vit: Any, configured: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Input size and patch grid."""
    if isinstance(vit, NaFlexVit):
        embeds: Any = vit.embeds
        size = getattr(embeds, "default_img_size", None) or configured
        rows, columns = embeds.dynamic_feat_size(size)
    else:
        size = vit.patch_embed.img_size or configured
        rows, columns = vit.patch_embed.grid_size or (
            s // p for s, p in zip(size, vit.patch_embed.patch_size, strict=True)
        )
    return (int(size[0]), int(size[1])), (int(rows), int(columns))


def components(vit: Any, attention: Any) -> frozenset[str]:
    """Parts beyond the plain ViT."""
    block = vit.blocks[0]
    signs = {
        "LayerScale": isinstance(getattr(block, "ls1", None), LayerScale) or not missing_part(block, "gamma_1"),
        "registers": tokens(vit).prefix.count("register") > getattr(vit, "test_time_registers", 0),
        "distillation token": "distillation" in tokens(vit).prefix,
        "pre-norm": not missing_part(vit, "norm_pre"),
        "q/k norm": not missing_part(attention, "q_norm"),
        "relative position bias": not all(
            (
                missing_part(attention, "relative_position_bias_table"),
                missing_part(attention, "rel_pos"),
                missing_part(vit, "rel_pos_bias"),
                missing_part(vit, "shared_rel_pos"),
            )
        ),
        "RoPE": not missing_part(vit, "rope"),
        "gated MLP": isinstance(getattr(block, "mlp", None), GluMlp | SwiGLU),
        "post-norm": "Post" in type(block).__name__,
        "norm of the attention's output": not missing_part(attention, "norm"),
        "gated attention": not missing_part(attention, "gate"),
    }
    return frozenset(name for name, present in signs.items() if present)
