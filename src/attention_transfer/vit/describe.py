"""What a ViT is, in one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.data import resolve_data_config
from timm.layers import GluMlp, LayerScale, SwiGLU
from torch import nn

from attention_transfer.vit.capture import attention_modules


@dataclass(frozen=True)
class ViTSpec:
    """Shape, tokens, input and components of a vision transformer.

    Attributes:
        name: architecture, as timm knows it.
        depth: number of blocks.
        heads: attention heads a block.
        head_dim: dimension of a head.
        width: embedding dimension.
        prefix_tokens: tokens before the patches: class token, distillation token, registers.
        class_token: whether token 0 is a class token.
        grid: patches (rows, columns).
        image_size: input pixels (height, width).
        channels: input channels.
        mean: input normalisation, a value a channel, on images in [0, 1].
        std: input normalisation, a value a channel.
        classes: outputs of the head; 0 where there is none.
        components: parts beyond the plain ViT, e.g. "LayerScale", "registers", "RoPE".
    """

    name: str
    depth: int
    heads: int
    head_dim: int
    width: int
    prefix_tokens: int
    class_token: bool
    grid: tuple[int, int]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    components: frozenset[str]


def describe(model: nn.Module) -> ViTSpec:
    """Describe a plain timm vision transformer.

    Raises:
        UserError: the model has no supported attention.
    """
    attention: Any = attention_modules(model)[0]
    vit: Any = model
    config = resolve_data_config({}, model=vit)
    channels, height, width = config["input_size"]
    size = tuple(vit.patch_embed.img_size or (height, width))
    return ViTSpec(
        name=str(vit.pretrained_cfg.get("architecture", type(model).__name__)),
        depth=len(vit.blocks),
        heads=int(attention.num_heads),
        head_dim=int(getattr(attention, "head_dim", 0) or round(attention.scale**-2)),
        width=int(vit.embed_dim),
        prefix_tokens=int(vit.num_prefix_tokens),
        class_token=getattr(vit, "cls_token", None) is not None,
        grid=(int(vit.patch_embed.grid_size[0]), int(vit.patch_embed.grid_size[1])),
        image_size=(int(size[0]), int(size[1])),
        channels=int(getattr(vit, "in_chans", channels)),
        mean=_per_channel(config["mean"], int(getattr(vit, "in_chans", channels))),
        std=_per_channel(config["std"], int(getattr(vit, "in_chans", channels))),
        classes=int(vit.num_classes),
        components=_components(vit, attention),
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Normalisation for the model's channels; one grey channel takes the mean of three colours."""
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (float(sum(values) / len(values)),) * channels


def _components(vit: Any, attention: Any) -> frozenset[str]:
    block = vit.blocks[0]
    signs = {
        "LayerScale": isinstance(getattr(block, "ls1", None), LayerScale) or _present(block, "gamma_1"),
        "registers": getattr(vit, "reg_token", None) is not None,
        "distillation token": getattr(vit, "dist_token", None) is not None,
        "pre-norm": _present(vit, "norm_pre"),
        "q/k norm": _present(attention, "q_norm"),
        "relative position bias": any(
            (
                _present(attention, "relative_position_bias_table"),
                _present(attention, "rel_pos"),
                _present(vit, "rel_pos_bias"),
            )
        ),
        "RoPE": _present(vit, "rope"),
        "gated MLP": isinstance(getattr(block, "mlp", None), GluMlp | SwiGLU),
        "gated attention": _present(attention, "gate"),
    }
    return frozenset(name for name, present in signs.items() if present)


def _present(module: Any, name: str) -> bool:
    return not isinstance(getattr(module, name, None), nn.Identity | None)
