"""What this package needs to know about a vision transformer, whichever library it comes from."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from attention_transfer.attention import Tokens
from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError
from attention_transfer.hooks import Projections
from attention_transfer.vit.files import read_state, weights_in
from attention_transfer.vit.initialise import initialise

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


class Sizes(TypedDict):
    """What a model is made with in place of its own; `None` keeps that.

    Attributes:
        num_classes: outputs of the head; 0 leaves the head out.
        image_size: input pixels (height, width).
        patch_size: pixels of a patch's side.
    """

    num_classes: int | None
    image_size: tuple[int, int] | None
    patch_size: int | None


# What projections are called in timm and in transformers.
_GIVES = {
    "qkv": "qkv",
    **dict.fromkeys(("q_proj", "query"), "q"),
    **dict.fromkeys(("k_proj", "key"), "k"),
    **dict.fromkeys(("v_proj", "value"), "v"),
}


class Library(ABC):
    """What is asked of a library of models; every method gets a model out of its wrappers.

    A package adds one by an entry point of the group `attention_transfer.libraries`, whose name is the library's, and
    which names a class derived from this one. What is abstract here is all that it has to say.

    Attributes:
        name: what names of its models begin with, as `timm` in `timm/vit_tiny_patch16_224`.
    """

    name: str

    # Names of the parameters that parts of a network are known by, each the last part of a name or what is before it.
    fused = re.compile(r"(^|\.)(qkv\.|in_proj_)(weight|bias)$")  # rows of queries, keys, values
    queries_and_keys = re.compile(r"(^|\.)((q_proj|k_proj|query|key)\.(weight|bias)|[qk]_bias)$")
    values = re.compile(r"(^|\.)((v_proj|value)\.(weight|bias)|v_bias)$")
    # Positions that attention reads may be shared by all blocks, or lie in the block beside the attention module.
    attention_positions = re.compile(r"(^|[._])(rel_pos|relative_position|rope)")
    pools = re.compile(r"(^|\.)(attn_pool|pooler)\.")
    # Weights of a backbone, which must not be left over when a file is read: a model without them is another network.
    backbone = re.compile(
        r"^(blocks|layers|encoder|model\.layer|patch_embed|embeddings|conv_proj|embeds|norm_pre|rel_pos_bias)\."
        r"|^(cls_token|class_token|pos_embed|reg_token|register_tokens|dist_token|rope\.freqs)$"
    )
    # What is computed from the architecture, or belongs to pre-training only. The frequencies of a RoPE may be learned.
    derived = re.compile(
        r"relative_position_index$|rope\.(?!freqs$)|mask_token$|masked_embed$|attn\.k_bias$|(^|\.)decoder"
        r"|position_ids$|periods$"
    )
    not_decayed = re.compile(r"token|position|pos_embed|class_embedding")

    @abstractmethod
    def owns(self, model: nn.Module) -> bool:
        """Whether the model comes from this library."""

    @abstractmethod
    def anatomy(self, model: nn.Module) -> Anatomy:
        """Where its parts are; raises a `UserError` for what is no plain ViT."""

    @abstractmethod
    def spec(self, model: nn.Module) -> ViTSpec:
        """What it is."""

    @abstractmethod
    def build(self, name: str, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """Make a model from its name."""

    @abstractmethod
    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A copy on the CPU with a new head of so many classes; 0 leaves the head out."""

    @abstractmethod
    def head(self, model: nn.Module) -> nn.Linear | None:
        """The layer that gives the class logits."""

    @abstractmethod
    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """Beginnings of the names of weights that belong to the head and may be new."""

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """Make a model from a folder with its `config.json` and weights, as `save` wrote it."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own: Sizes = {**sizes, "num_classes": config["classes"]}
        model: Any = self.build(config["name"], pretrained=False, **own)
        if pretrained:
            model.load_state_dict(read_state(weights_in(folder)))
        model.label_names = config["label_names"]
        kept = sizes["num_classes"] in (None, config["classes"])
        return cast(nn.Module, model) if kept else self.with_head(model, sizes["num_classes"] or 0)

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """Write weights and configuration into an empty folder."""
        spec = self.spec(model)
        config = {"library": self.name, "name": spec.name, "classes": spec.classes}
        config["label_names"] = labels or self.labels(model)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")

    def fresh(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A randomly initialised network of the same shape and components, on the CPU, as in Li et al. 2024."""
        student = self.with_head(model, num_classes)
        initialise(student)
        return student

    def labels(self, model: nn.Module) -> list[str] | None:
        """Names of its classes, where they were saved with it."""
        return cast("list[str] | None", getattr(model, "label_names", None))

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:  # noqa: ARG002
        """Weights of a published layout under this model's names and in its shapes."""
        return state

    def arranged(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Weights of a file, split or joined as those that the model has, before they are `adapted`."""
        return state

    def is_backbone(self, name: str) -> bool:
        """Whether a weight is one that a model can't be without."""
        return bool(self.backbone.search(name)) and not self.derived.search(name)

    def projections(self, attention: nn.Module) -> Projections:
        """The linear layers of an attention module by what they give: "q", "k", "v" or, in this order in one, "qkv"."""
        found: dict[str, list[nn.Module]] = {}
        for name, module in attention.named_modules():
            gives = _GIVES.get(name.rpartition(".")[2])
            if gives is not None and hasattr(module, "weight"):
                found.setdefault(gives, []).append(module)
        return found

    def can_recompute(self, model: nn.Module) -> bool:  # noqa: ARG002
        """Whether the model can run its blocks again in the backward pass (gradient checkpointing)."""
        return False

    def recompute(self, model: nn.Module, *, on: bool) -> None:
        """Switch gradient checkpointing."""
        raise NotImplementedError(f"{self.name} has no gradient checkpointing ({type(model).__name__}, {on})")

    def recomputes(self, model: nn.Module) -> bool:
        """Whether gradient checkpointing is on, in the model or in one of its parts."""
        switches = ("grad_checkpointing", "gradient_checkpointing")
        return any(getattr(module, switch, False) is True for module in model.modules() for switch in switches)

    def no_weight_decay(self, model: nn.Module) -> tuple[str, ...]:
        """Names of tokens and position embeddings, which weight decay leaves alone beside norms and biases."""
        return tuple(name for name, _ in model.named_parameters() if self.not_decayed.search(name))

    def drop_paths(self, model: nn.Module) -> tuple[nn.Module, ...]:  # noqa: ARG002
        """The modules that drop residual branches, two a block; empty where the model has none that can be set."""
        return ()

    def drop_path_rate(self, module: nn.Module) -> float:
        """How often one of `drop_paths` drops its branch."""
        raise NotImplementedError(f"{self.name} has no drop path ({type(module).__name__})")

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Set stochastic depth that grows linearly from 0 at the first block to `rate` at the last, in place."""
        if rate > 0:
            raise no_drop_path(model)

    def set_pool(self, model: nn.Module, pool: Pool) -> None:  # noqa: ARG002
        """Let the head read the class token, or the mean of the patches."""
        raise UserError(f"{type(model).__name__} gathers its tokens in its own way; leave pool out")


def no_drop_path(model: nn.Module) -> UserError:
    """The error that a model has no stochastic depth."""
    return UserError(
        f"{type(model).__name__} has no drop path that can be set; set drop_path to 0, or take the network of timm"
    )


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
