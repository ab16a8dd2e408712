"""What this package needs to know about a vision transformer, whichever library it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from attention_transfer.attention import Tokens
from attention_transfer.errors import UserError
from attention_transfer.hooks import Projections

SUPPORTED = (
    "a plain vision transformer of timm, Hugging Face transformers or torchvision is needed, whose blocks attend over "
    "all tokens (ViT, DeiT, DINO, DINOv2, DINOv3, MAE, BEiT, CLIP, SigLIP, EVA-02, …)"
)


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
    """

    model: nn.Module
    blocks: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    pool: nn.Module | None
    tokens: Tokens
    pool_tokens: Tokens | None = None


@dataclass(frozen=True)
class ViTSpec:
    """Shape, tokens, input and components of a vision transformer.

    Attributes:
        name: architecture, as its library knows it.
        library: "timm", "hf" or "torchvision".
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


# What projections are called in timm and in transformers.
_GIVES = {
    "qkv": "qkv",
    **dict.fromkeys(("q_proj", "query"), "q"),
    **dict.fromkeys(("k_proj", "key"), "k"),
    **dict.fromkeys(("v_proj", "value"), "v"),
}


class Library(Protocol):
    """What is asked of a library; every method gets a model out of its wrappers."""

    name: str

    def owns(self, model: nn.Module) -> bool:
        """Whether the model comes from this library."""

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Where its parts are; raises a `UserError` for what is no plain ViT."""

    def spec(self, model: nn.Module) -> ViTSpec:
        """What it is."""

    def build(
        self,
        name: str,
        *,
        pretrained: bool,
        num_classes: int | None,
        image_size: tuple[int, int] | None,
        patch_size: int | None,
    ) -> nn.Module:
        """Make a model from its name."""

    def open(
        self,
        folder: Path,
        *,
        pretrained: bool,
        num_classes: int | None,
        image_size: tuple[int, int] | None,
        patch_size: int | None,
    ) -> nn.Module:
        """Make a model from a folder with its `config.json` and weights."""

    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A copy on the CPU with a new head of so many classes; 0 leaves the head out."""

    def fresh(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A randomly initialised network of the same shape and components, on the CPU."""

    def projections(self, attention: nn.Module) -> Projections:
        """The linear layers of an attention module by what they give: "q", "k", "v" or, in this order in one, "qkv"."""
        found: dict[str, list[nn.Module]] = {}
        for name, module in attention.named_modules():
            gives = _GIVES.get(name.rpartition(".")[2])
            if gives is not None and hasattr(module, "weight"):
                found.setdefault(gives, []).append(module)
        return found

    def head(self, model: nn.Module) -> nn.Linear | None:
        """The layer that gives the class logits."""

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """Beginnings of the names of weights that belong to the head and may be new."""

    def labels(self, model: nn.Module) -> list[str] | None:
        """Names of its classes, where they were saved with it."""

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Weights of a published layout under this model's names and in its shapes."""

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """Write weights and configuration into an empty folder."""


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
    """As [`per_channel`][attention_transfer.vit.libraries.base.per_channel], for what pixels are divided by."""
    found = per_channel(values, channels)
    if min(found) <= 0:
        raise UserError(f"a model's standard deviation is {values!r}; give numbers above 0 in its config.json")
    return found


def missing_part(module: Any, name: str) -> bool:
    """Whether an attribute is absent, `None` or an identity."""
    return isinstance(getattr(module, name, None), nn.Identity | None)
