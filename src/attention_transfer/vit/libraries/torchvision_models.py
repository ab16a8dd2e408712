"""The vision transformers of torchvision."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

import torch
import torchvision
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from attention_transfer.attention import Tokens
from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.libraries.base import SUPPORTED, Library, Sizes, not_fetched, write_folder
from attention_transfer.vit.libraries.description import IMAGENET_MEAN, IMAGENET_STD, Anatomy, ViTSpec
from attention_transfer.vit.reading import read_tensors, unfit, weights_in

_POSITION = "encoder.pos_embedding"
_ARGUMENTS = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "representation_size")
_RENAMED = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
_NORM_EPS = 1e-6  # torchvision's own


class Torchvision(Library):
    """See [`Library`][attention_transfer.vit.libraries.Library]."""

    name = "torchvision"
    signs = ("conv_proj.weight",)

    def owns(self, model: nn.Module) -> bool:
        """Any model of torchvision; `anatomy` says which are supported."""
        return isinstance(model, VisionTransformer) or type(model).__module__.startswith("torchvision.")

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Blocks are `.encoder.layers`, their attention is `torch.nn.MultiheadAttention`."""
        if not isinstance(model, VisionTransformer):
            raise UserError(f"{type(model).__name__} has no supported attention: {SUPPORTED}")
        blocks: tuple[nn.Module, ...] = tuple(cast(Any, model.encoder.layers))
        attention: tuple[nn.Module, ...] = tuple(cast(Any, block).self_attention for block in blocks)
        return Anatomy(model=model, blocks=blocks, attention=attention, pool=None, tokens=Tokens())

    def spec(self, model: nn.Module) -> ViTSpec:
        """Read from the model's attributes."""
        vit: Any = model
        attention: Any = vit.encoder.layers[0].self_attention
        side = vit.image_size // vit.patch_size
        head = self.head(model)
        return ViTSpec(
            name=f"vit_p{vit.patch_size}_{vit.hidden_dim}x{len(vit.encoder.layers)}",
            library=self.name,
            depth=len(vit.encoder.layers),
            heads=int(attention.num_heads),
            head_dim=int(attention.head_dim),
            width=int(vit.hidden_dim),
            tokens=Tokens(),
            grid=(side, side),
            image_size=(vit.image_size, vit.image_size),
            channels=3,
            mean=IMAGENET_MEAN,  # of all its published weights
            std=IMAGENET_STD,
            classes=0 if head is None else head.out_features,
            pool=False,
            components=frozenset(),
        )

    def build(self, name: str, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """`torchvision.models.get_model`, with its best weights where they are wanted."""
        names = torchvision.models.list_models(include="vit_*")
        if name not in names:
            raise UserError(f"torchvision has no vision transformer {name!r}; {nearest(name, names)}")
        try:
            vit = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        except (OSError, RuntimeError) as error:
            raise not_fetched(f"torchvision/{name}", error) from error
        return self._changed(vit, sizes)

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """A folder that `save` wrote."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        try:
            norm = partial(nn.LayerNorm, eps=config.get("norm_eps", _NORM_EPS))
            vit: Any = VisionTransformer(**config["arguments"], norm_layer=norm)
            vit = vit if config["arguments"]["num_classes"] else self.with_head(vit, 0)
            vit.label_names = config["label_names"]
            if pretrained:
                vit.load_state_dict(read_tensors(weights_in(folder)))
        except UserError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise unfit(folder, error) from error
        return self._changed(vit, sizes)

    def _changed(self, vit: nn.Module, sizes: Sizes) -> nn.Module:
        num_classes, image_size = sizes["num_classes"], sizes["image_size"]
        if sizes["patch_size"] is not None or (image_size is not None and image_size[0] != image_size[1]):
            raise UserError("a torchvision model takes neither another patch size nor images that are not square")
        if image_size is not None and image_size[0] != cast(Any, vit).image_size:
            _resize(vit, image_size[0])
        head = self.head(vit)
        kept = num_classes is None or (head is not None and head.out_features == num_classes)
        return vit if kept else self.with_head(vit, cast(int, num_classes))

    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """A new `.heads` on a copy."""
        student: Any = copy.deepcopy(model)
        if not student.class_token.is_meta:  # of which only the size is asked
            student = student.cpu()
        student.heads = nn.Sequential()
        student.heads.add_module(
            "head", nn.Linear(student.hidden_dim, num_classes) if num_classes > 0 else nn.Identity()
        )
        student.num_classes, student.representation_size = num_classes, None
        student.label_names = None
        return cast(nn.Module, student)

    def head(self, model: nn.Module) -> nn.Linear | None:
        """The last layer of `.heads`."""
        head = getattr(cast(Any, model).heads, "head", None)
        return head if isinstance(head, nn.Linear) else None

    def head_names(self, model: nn.Module) -> tuple[str, ...]:  # noqa: ARG002
        """The classifier."""
        return ("heads.",)

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Names of the published files, which are older than the library's; positions for the model's grid."""
        vit: Any = model
        for old, new in _RENAMED.items():
            state = {key.replace(old, new): value for key, value in state.items()}
        if _POSITION in state and state[_POSITION].shape[1] != vit.seq_length:
            side = vit.image_size // vit.patch_size
            state = {**state, _POSITION: resample_abs_pos_embed(state[_POSITION], [side, side])}
        return state

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """Weights, and what the constructor needs; torchvision has no format, so only `load_vit` reads this one."""
        vit: Any = model
        arguments = {name: getattr(vit, name) for name in _ARGUMENTS}
        arguments |= {"num_layers": len(vit.encoder.layers), "num_heads": vit.encoder.layers[0].num_heads}
        arguments["num_classes"] = vit.num_classes
        names = labels or self.labels(model)
        config = {"library": self.name, "arguments": arguments, "norm_eps": _norm_eps(vit), "label_names": names}
        write_folder(folder, model, config)


def _norm_eps(vit: Any) -> float:
    """The epsilon of its norms, which are all made by one function."""
    if type(vit.encoder.ln) is not nn.LayerNorm:
        raise UserError(
            f"a torchvision model can be saved with LayerNorm only, not with {type(vit.encoder.ln).__name__}"
        )
    return float(vit.encoder.ln.eps)


def _resize(vit: Any, image_size: int) -> None:
    if image_size % vit.patch_size:
        raise UserError(f"an image size of {image_size} is no multiple of the patch size {vit.patch_size}; give one")
    side = image_size // vit.patch_size
    with torch.no_grad():
        position = resample_abs_pos_embed(vit.encoder.pos_embedding, [side, side])
    vit.encoder.pos_embedding = nn.Parameter(position)
    vit.image_size, vit.seq_length = image_size, side * side + 1
