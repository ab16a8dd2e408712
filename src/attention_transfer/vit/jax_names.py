"""Weights of the JAX projects (the original ViT, AugReg, big_vision) under timm's names and in its shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# Where a file keeps the network: bare, beside an optimiser, or in a pair of image and text tower.
_PREFIX = re.compile(r"^(opt/target/|params/img/|params/)")
_SCANNED = re.compile(r"(.*Transformer/encoderblock)/(.+)")  # all blocks in one array, over its first axis
_BLOCK = r"Transformer/encoderblock_(\d+)/"
_NAMES = [
    (r"cls$", "cls_token"),
    (r"embedding/", "patch_embed.proj/"),
    (r"(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"Transformer/encoder_norm/", "norm/"),
    (_BLOCK + r"LayerNorm_0/", r"blocks.\1.norm1/"),
    (_BLOCK + r"LayerNorm_[12]/", r"blocks.\1.norm2/"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/(q|k|v)(uery|ey|alue)/", r"blocks.\1.attn.\2/"),
    (_BLOCK + r"MultiHeadDotProductAttention_[01]/out/", r"blocks.\1.attn.proj/"),
    (_BLOCK + r"MlpBlock_[03]/Dense_0/", r"blocks.\1.mlp.fc1/"),
    (_BLOCK + r"MlpBlock_[03]/Dense_1/", r"blocks.\1.mlp.fc2/"),
]


def from_jax(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """As it is, unless it is of one of these projects: then under timm's names; what has none keeps its own."""
    bare = {_PREFIX.sub("", name): value for name, value in content.items() if isinstance(value, Tensor)}
    if "embedding/kernel" not in bare:
        return content
    return dict(_converted(name, value) for name, value in _unstacked(bare).items())


def _unstacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks of a scanned network, each for itself."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := _SCANNED.fullmatch(name):
            found |= {f"{match[1]}_{index}/{match[2]}": one for index, one in enumerate(value)}
        else:
            found[name] = value
    return found


def _converted(name: str, value: Tensor) -> tuple[str, Tensor]:
    for pattern, ours in _NAMES:
        if re.match(pattern, name):
            name = re.sub(pattern, ours, name, count=1)
            break
    place, _, leaf = name.rpartition("/")
    if leaf == "kernel":
        return f"{place}.weight", _kernel(place, value)
    if leaf in ("scale", "bias"):
        return f"{place}.{'weight' if leaf == 'scale' else 'bias'}", value.flatten()
    return name, value


def _kernel(place: str, value: Tensor) -> Tensor:
    """A kernel with its outputs first; heads, which are an axis of their own there, joined."""
    if value.dim() == 4:  # of a convolution: rows, columns, inputs, outputs
        return value.permute(3, 2, 0, 1).contiguous()
    joined = value.flatten(0, -2) if place.endswith("proj") else value.flatten(1)
    return joined.T.contiguous()
