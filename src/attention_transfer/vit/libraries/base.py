"""What this package asks of a library of vision transformers."""
# ruff: noqa: ARG002 (defaults read less than what replaces them)

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError
from attention_transfer.hooks import Projections
from attention_transfer.vit.libraries.description import Anatomy, ViTSpec
from attention_transfer.vit.libraries.initial import Initial, initialise
from attention_transfer.vit.reading import read_tensors, weights_in

SUPPORTED = (
    "a plain vision transformer of timm, Hugging Face transformers or torchvision is needed, whose blocks attend over "
    "all tokens (ViT, DeiT, DINO, DINOv2, DINOv3, MAE, BEiT, CLIP, SigLIP, EVA-02, …)"
)


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


@dataclass(frozen=True)
class Network:
    """A network in a weights file.

    Attributes:
        state: its weights by name, without prefixes.
        place: the prefix that they have in the file, such as "teacher.backbone."; empty where there is none.
        arch: the architecture that the file names, in the words of its project; empty where it names none.
    """

    state: dict[str, Tensor]
    place: str = ""
    arch: str = ""


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
        hub_name: what the Hugging Face Hub calls the library; default its name.
        folders: what comes before a path in a name that is a folder's, as `local-dir:` in `timm/local-dir:PATH`; `None`
            where no name is one.
        signs: names of weights by which a network is found in a file with several; each of its models has one of them.
        heads_beside: beginnings of the names of a head that lies beside its backbone in a file, and not inside.
        initial: how parameters are initialised that no module initialises by itself.
        not_reentrant: how users choose the kind of gradient checkpointing that does not hide queries and keys.
    """

    name: str
    folders: str | None = None
    signs: tuple[str, ...] = ()
    heads_beside: tuple[str, ...] = ()
    initial = Initial()
    not_reentrant = "use_reentrant=False"

    # Names of the parameters that parts of a network are known by, each the last part of a name or what is before it.
    fused = re.compile(r"(^|\.)(qkv\.|in_proj_)(weight|bias)$")  # rows of queries, keys, values
    queries_and_keys = re.compile(r"(^|\.)((q_proj|k_proj|query|key)\.(weight|bias)|[qk]_bias)$")
    values = re.compile(r"(^|\.)((v_proj|value)\.(weight|bias)|v_bias)$")
    # Positions that attention reads may be shared by all blocks, or lie in the block beside the attention module.
    attention_positions = re.compile(r"(^|[._])(rel_pos|relative_position|rope)")
    # Embeddings that are registered after the first block, as YOLOS has some.
    later_embeddings = re.compile(r"position_embedding")
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

    @property
    def hub_name(self) -> str:
        """What the Hugging Face Hub calls the library."""
        return self.name

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

    def published(self, name: str) -> str | None:
        """The name on the Hugging Face Hub of a model that `build` makes from this name; `None` if it is not there."""
        return None

    def wrote(self, config: dict[str, Any]) -> bool:
        """Whether a folder whose `config.json` has this content is one that `open` reads."""
        return config.get("library") == self.name

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """Make a model from a folder with its `config.json` and weights, as `save` wrote it."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own: Sizes = {**sizes, "num_classes": config["classes"]}
        model: Any = self.build(config["name"], pretrained=False, **own)
        if pretrained:
            model.load_state_dict(read_tensors(weights_in(folder)))
        model.label_names = config["label_names"]
        kept = sizes["num_classes"] in (None, config["classes"])
        return cast(nn.Module, model) if kept else self.with_head(model, sizes["num_classes"] or 0)

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """Write weights and configuration into an empty folder."""
        spec = self.spec(model)
        config = {"library": self.name, "name": spec.name, "classes": spec.classes}
        config["label_names"] = labels or self.labels(model)
        write_folder(folder, model, config)

    def recognise(self, network: Network, path: Path, **sizes: Unpack[Sizes]) -> nn.Module | None:
        """A model, with any weights, of the architecture that shows in a file's weights; `None` where none shows.

        Raises:
            UserError: the network is one of this library's, but its architecture must be named.
        """
        return None

    def initialise(self, model: nn.Module) -> None:
        """Give every parameter a random value, in place, as in Li et al. 2024."""
        initialise(model, self.initial)

    def fresh(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A randomly initialised network of the same shape and components, on the CPU."""
        student = self.with_head(model, num_classes)
        self.initialise(student)
        return student

    def labels(self, model: nn.Module) -> list[str] | None:
        """Names of its classes, where they were saved with it."""
        return cast("list[str] | None", getattr(model, "label_names", None))

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Weights of a published layout under this model's names and in its shapes."""
        return state

    def arranged(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
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

    def can_recompute(self, model: nn.Module) -> bool:
        """Whether the model can run its blocks again in the backward pass (gradient checkpointing)."""
        return False

    def recompute(self, model: nn.Module, *, on: bool) -> None:
        """Switch gradient checkpointing, which must not be the re-entrant kind."""
        raise NotImplementedError(f"{self.name} has no gradient checkpointing ({type(model).__name__}, {on})")

    def recomputes(self, model: nn.Module) -> bool:
        """Whether gradient checkpointing is on, in the model or in one of its parts."""
        switches = ("grad_checkpointing", "gradient_checkpointing")
        return any(getattr(module, switch, False) is True for module in model.modules() for switch in switches)

    def no_weight_decay(self, model: nn.Module) -> tuple[str, ...]:
        """Names of tokens and position embeddings, which weight decay leaves alone beside norms and biases."""
        return tuple(name for name, _ in model.named_parameters() if self.not_decayed.search(name))

    def drop_paths(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The modules that drop residual branches, two a block; empty where the model has none that can be set."""
        return ()

    def drop_path_rate(self, module: nn.Module) -> float:
        """How often one of `drop_paths` drops its branch."""
        raise NotImplementedError(f"{self.name} has no drop path ({type(module).__name__})")

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """Set stochastic depth that grows linearly from 0 at the first block to `rate` at the last, in place."""
        if rate > 0:
            raise no_drop_path(model)

    def can_mask(self, model: nn.Module) -> bool:
        """Whether its blocks can be run on some of the patches (masked autoencoding), by `embedded` and `encoded`."""
        return False

    def embedded(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens, (B, prefix, C), and patches, (B, L, C), with their positions, as the first block gets them."""
        raise NotImplementedError(f"{self.name} has no tokens to choose from ({type(model).__name__})")

    def encoded(self, model: nn.Module, tokens_BNC: Tensor) -> Tensor:
        """Such tokens, or some of them, after all blocks and the final norm."""
        raise NotImplementedError(f"{self.name} has no tokens to choose from ({type(model).__name__})")

    def pool(self, model: nn.Module) -> str:
        """How the head gathers its tokens: by "token", "avg", or another word of the library's."""
        return "token"

    def set_pool(self, model: nn.Module, pool: Pool) -> None:
        """Let the head read the class token, or the mean of the patches."""
        raise UserError(f"{type(model).__name__} gathers its tokens in its own way; leave pool out")


def write_folder(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Make a folder of a model's weights and this configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")


def not_fetched(model: str, error: Exception) -> UserError:
    """The error that a model's published weights can't be had."""
    return UserError(
        f"the weights of {model} could not be fetched ({type(error).__name__}); connect to the network, or give a "
        "local file with --pretrained FILE, or random weights with --pretrained false"
    )


def no_drop_path(model: nn.Module) -> UserError:
    """The error that a model has no stochastic depth."""
    return UserError(
        f"{type(model).__name__} has no drop path that can be set; set drop_path to 0, or take the network of timm"
    )
