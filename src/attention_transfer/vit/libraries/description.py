"""What there is to say of a vision transformer: where its parts are, and its shape, tokens and input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from attention_transfer.attention import Tokens
from attention_transfer.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a ViT are.

    Attributes:
        model: the network itself, out of any wrapper.
        blocks: its residual blocks, in order.
        attention: the attention module of each block.
        pool: the attention of an attention-pool head, or `None`.
        tokens: what its tokens are.
        pool_tokens: what the pooling head's keys are tokens of; `None` is all tokens.
        pool_head: the whole of that head, where it has more than its attention.
    """

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    pool: nn.Module | None
    tokens: Tokens
    pool_tokens: Tokens | None = None
    pool_head: nn.Module | None = None


@dataclass(frozen=True)
class ViTSpec:
    """Shape, tokens, input and components of a vision transformer.

    Attributes:
        name: architecture, as its library knows it.
        library: name of that, e.g. "timm", "hf" or "torchvision".
        depth: number of blocks.
        heads: attention heads a block.
        head_dim: dimension of a head.
        width: embedding dimension.
        tokens: kinds of the tokens before and after the patches.
        grid: patches (rows, columns).
        image_size: input pixels (height, width).
        channels: input channels.
        mean: input normalisation, a value a channel, on images in [0, 1].
        std: input normalisation, a value a channel.
        classes: outputs of the head; 0 where there is none.
        pool: whether an attention-pool head gathers the tokens (SigLIP, PE).
        components: parts beyond the plain ViT, e.g. "LayerScale", "registers", "RoPE".
        pool_tokens: what the pooling head gathers; `None` is all tokens.
    """

    name: str
    library: str
    depth: int
    heads: int
    head_dim: int
    width: int
    tokens: Tokens
    grid: tuple[int, int]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    pool: bool
    components: frozenset[str]
    pool_tokens: Tokens | None = None

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches: class token, distillation token, registers."""
        return len(self.tokens.prefix)

    @property
    def class_token(self) -> bool:
        """Whether token 0 is a class token."""
        return self.tokens.class_token

    @property
    def sequence(self) -> int:
        """Number of all tokens."""
        return self.prefix_tokens + self.grid[0] * self.grid[1] + self.tokens.suffix


def per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """Normalisation for the model's channels; one grey channel takes the mean of three colours.

    Raises:
        UserError: these are no finite numbers.
    """
    try:
        found = tuple(float(value) for value in (() if isinstance(values, str) else values))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise UserError(
            f"a model's mean or standard deviation is {values!r}; give a number a channel in its config.json"
        )
    return found if len(found) == channels else (sum(found) / len(found),) * channels


def deviation(values: Any, channels: int) -> tuple[float, ...]:
    """As [`per_channel`][attention_transfer.vit.libraries.description.per_channel], for what pixels are divided by."""
    found = per_channel(values, channels)
    if min(found) <= 0:
        raise UserError(f"a model's standard deviation is {values!r}; give numbers above 0 in its config.json")
    return found


def missing_part(module: Any, name: str) -> bool:
    """Whether an attribute is absent, `None` or an identity."""
    return isinstance(getattr(module, name, None), nn.Identity | None)
