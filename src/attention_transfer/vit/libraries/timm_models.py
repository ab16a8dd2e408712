"""The vision transformers of timm."""

from __future__ import annotations

import copy
import logging
import re
import sys
from pathlib import Path
from typing import Any, Unpack, cast

import timm
from timm.data import resolve_data_config
from timm.layers import AttentionPoolLatent, DiffAttention, DropPath, calculate_drop_path_rates
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError
from attention_transfer.vit.libraries import timm_parts as parts
from attention_transfer.vit.libraries import timm_weights as weights
from attention_transfer.vit.libraries.base import SUPPORTED, Library, Network, Sizes, not_fetched
from attention_transfer.vit.libraries.description import Anatomy, ViTSpec, deviation, per_channel
from attention_transfer.vit.libraries.initial import Initial
from attention_transfer.vit.libraries.timm_names import (
    arguments_for,
    check_name,
    forget_names,
    from_hub,
    without_stale_names,
)
from attention_transfer.vit.reading import read_tensors, unfit, weights_in

log = logging.getLogger("attention_transfer")

_BRANCHES = ("drop_path1", "drop_path2")  # the attention branch and the MLP branch of a block
_PLAIN = (VisionTransformer, VisionTransformerRelPos, Beit, Eva, NaFlexVit)


class Timm(Library):
    """See [`Library`][attention_transfer.vit.libraries.Library]."""

    name = "timm"
    folders = "local-dir:"
    signs = ("patch_embed.proj.weight", "embeds.proj.weight")
    not_reentrant = "timm.layers.set_reentrant_ckpt(False)"
    initial = Initial(
        normal=(
            *("cls_token", "reg_token", "dist_token", "latent", "in_proj_weight"),
            *("pos_embed", "pos_embed_y", "pos_embed_x", "relative_position_bias_table"),
        ),
        zero=("q_bias", "k_bias", "v_bias", "in_proj_bias"),
        scale=("gamma_1", "gamma_2"),  # of BEiT and EVA
    )

    def owns(self, model: nn.Module) -> bool:
        """Any model of timm, or one derived from its plain ViTs; `anatomy` says which are supported."""
        return isinstance(model, _PLAIN) or type(model).__module__.startswith("timm.")

    def anatomy(self, model: nn.Module) -> Anatomy:
        """Blocks are `.blocks`, their attention `.attn`."""
        vit: Any = model
        modules = [getattr(block, "attn", None) for block in vit.blocks] if isinstance(model, _PLAIN) else []
        found = tuple(
            m
            for m in modules
            if isinstance(m, nn.Module) and hasattr(m, "fused_attn") and not isinstance(m, DiffAttention)
        )
        if not found or len(found) != len(modules):
            raise UserError(f"{type(model).__name__} has no supported attention: {SUPPORTED}")
        if not all(cast(Any, module).fused_attn for module in found):
            raise UserError(
                f"{type(model).__name__} was built without fused attention, so that its attention can't be seen; "
                "call timm.layers.set_fused_attn(True) before it is made"
            )
        pool = getattr(vit, "attn_pool", None)
        return Anatomy(
            model=model,
            blocks=tuple(vit.blocks),
            attention=found,
            pool=pool if isinstance(pool, AttentionPoolLatent) else None,
            tokens=parts.tokens(vit),
            pool_tokens=parts.pool_tokens(vit),
        )

    def spec(self, model: nn.Module) -> ViTSpec:
        """Read from the model's attributes and its `pretrained_cfg`."""
        vit: Any = model
        attention: Any = vit.blocks[0].attn
        config = resolve_data_config({}, model=vit)
        channels, height, width = config["input_size"]
        channels = int(getattr(vit, "in_chans", channels))
        heads = int(attention.num_heads)
        image_size, grid = parts.grid(vit, (int(height), int(width)))
        return ViTSpec(
            name=str(vit.pretrained_cfg.get("architecture", type(model).__name__)),
            library=self.name,
            depth=len(vit.blocks),
            heads=heads,
            head_dim=int(getattr(attention, "head_dim", 0) or round(attention.scale**-2)),
            width=int(vit.embed_dim),
            tokens=parts.tokens(vit),
            grid=grid,
            image_size=image_size,
            channels=channels,
            mean=per_channel(config["mean"], channels),
            std=deviation(config["std"], channels),
            classes=int(vit.num_classes),
            pool=isinstance(getattr(vit, "attn_pool", None), AttentionPoolLatent),
            pool_tokens=parts.pool_tokens(vit),
            components=parts.components(vit, attention),
        )

    def build(self, name: str, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """`timm.create_model`, with its failures said in a sentence."""
        given, num_classes, image_size = arguments_for(sizes), sizes["num_classes"], sizes["image_size"]
        if re.match(r"hf[-_]hub:", name):
            return without_stale_names(from_hub(name, pretrained=pretrained, **given), num_classes)
        check_name(name, pretrained=pretrained)
        if image_size is not None and name.startswith("naflexvit"):  # takes any image; this only says which
            del given["img_size"]
            given["pretrained_cfg_overlay"] = {"input_size": (3, *image_size)}
        try:
            return without_stale_names(timm.create_model(name, pretrained=pretrained, **given), num_classes)
        except TypeError as error:
            raise UserError(f"timm/{name} does not take that size ({error}); leave it out") from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise not_fetched(f"timm/{name}", error) from error

    def published(self, name: str) -> str | None:
        """Every name of timm is one of its organisation there."""
        return f"timm/{name}"

    def wrote(self, config: dict[str, Any]) -> bool:
        """Timm says the architecture, and no library."""
        other = {"model_type", "library"} & config.keys()
        return super().wrote(config) or ("architecture" in config and not other)

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """Timm's `local-dir:` form."""
        given = arguments_for(sizes)
        if pretrained:
            read_tensors(weights_in(folder))  # says in a sentence what timm would say in a traceback
        try:
            model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=pretrained, **given)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise unfit(folder, error) from error
        settings = resolve_data_config({}, model=model)
        if not model.pretrained_cfg.get("mean") and pretrained:
            log.debug(
                "%s says no normalisation; mean %s and deviation %s are assumed",
                folder,
                settings["mean"],
                settings["std"],
            )
        return without_stale_names(model, sizes["num_classes"])

    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """`reset_classifier` on a copy."""
        student: Any = copy.deepcopy(model).cpu()
        student.reset_classifier(num_classes)
        forget_names(student)
        return cast(nn.Module, student)

    def head(self, model: nn.Module) -> nn.Linear | None:
        """`get_classifier`, unless the head was left out."""
        head = cast(Any, model).get_classifier()
        return head if isinstance(head, nn.Linear) else None

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """The classifier, and the norm and pooling that only a classifier has."""
        pooled = ("fc_norm.", "attn_pool.") if self.pool(model) != "token" else ()
        return ("head.", "head_dist.", *pooled)

    def arranged(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Separate q, k and v as the one weight `qkv`; BEiT's one table of all blocks as each block's own."""
        return weights.arranged(state, wanted)

    def adapted(self, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Timm's own reading of published layouts, which resamples position embeddings and patch kernels too."""
        if hasattr(cast(Any, model).blocks[0], "ls1"):  # DeiT-3 publishes LayerScale under the names of BEiT
            state = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}
        adapt = getattr(sys.modules[_home(model)], "checkpoint_filter_fn", None)
        return cast(dict[str, Tensor], adapt(state, model)) if adapt else state

    def labels(self, model: nn.Module) -> list[str] | None:
        """`label_names` of the model's configuration."""
        names = cast(Any, model).pretrained_cfg.get("label_names")
        return list(names) if names else None

    def can_recompute(self, model: nn.Module) -> bool:
        """Timm's ViTs can, by a switch."""
        return hasattr(model, "set_grad_checkpointing")

    def recompute(self, model: nn.Module, *, on: bool) -> None:
        """By that switch."""
        cast(Any, model).set_grad_checkpointing(on)

    def no_weight_decay(self, model: nn.Module) -> tuple[str, ...]:
        """What the model names itself."""
        return tuple(cast(Any, model).no_weight_decay())

    def drop_paths(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The attention branch and the MLP branch of each block."""
        found = [getattr(block, branch, None) for block in cast(Any, model).blocks for branch in _BRANCHES]
        modules = tuple(module for module in found if isinstance(module, nn.Module))
        return modules if len(modules) == len(found) else ()

    def drop_path_rate(self, module: nn.Module) -> float:
        """Of a `DropPath`; 0 of an identity."""
        return float(module.drop_prob or 0.0) if isinstance(module, DropPath) else 0.0

    def set_drop_path(self, model: nn.Module, rate: float) -> None:
        """New `DropPath` modules, and identities where the rate is 0."""
        if not self.drop_paths(model):
            return super().set_drop_path(model, rate)
        blocks = self.anatomy(model).blocks
        for block, block_rate in zip(blocks, calculate_drop_path_rates(rate, len(blocks)), strict=True):
            for branch in _BRANCHES:
                setattr(block, branch, DropPath(float(block_rate)) if block_rate > 0 else nn.Identity())
        return None

    def can_mask(self, model: nn.Module) -> bool:
        """Where positions are added before the first block, and nothing else depends on a token's place."""
        vit: Any = model
        unusual = {"registers", "pre-norm", "RoPE"} & parts.components(vit, vit.blocks[0].attn)
        return getattr(vit, "pos_embed", None) is not None and not unusual

    def embedded(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `_pos_embed` of a `VisionTransformer`."""
        vit: Any = model
        patches_BLC, prefix = vit.patch_embed(images), 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
        patches_BLC = patches_BLC + vit.pos_embed[:, prefix:]
        if vit.cls_token is None:
            return patches_BLC[:, :0], patches_BLC
        class_11C = vit.cls_token + vit.pos_embed[:, :prefix] if prefix else vit.cls_token
        return class_11C.expand(len(images), -1, -1), patches_BLC

    def encoded(self, model: nn.Module, tokens_BNC: Tensor) -> Tensor:
        """Blocks and norm."""
        vit: Any = model
        encoded: Tensor = vit.norm(vit.blocks(tokens_BNC))
        return encoded

    def pool(self, model: nn.Module) -> str:
        """By timm's word for it."""
        return str(getattr(model, "global_pool", "token"))

    def set_pool(self, model: nn.Module, pool: Pool) -> None:
        """The final norm changes its place; the head keeps its weights."""
        vit: Any = model
        if not isinstance(vit, VisionTransformer | Eva) or getattr(vit, "head_dist", None) is not None:
            return super().set_pool(model, pool)
        if vit.global_pool not in ("token", "avg"):
            raise UserError(f"the model gathers its tokens by {vit.global_pool!r}; leave pool out")
        if pool == "token" and vit.cls_token is None:
            raise UserError("pool is 'token', but the model has no class token; set it to 'avg'")
        norms = [norm for norm in (vit.norm, vit.fc_norm) if not isinstance(norm, nn.Identity)]
        if len(norms) != 1:
            raise UserError(f"the model has {len(norms)} final norms, not one; leave pool out")
        vit.norm, vit.fc_norm = (nn.Identity(), norms[0]) if pool == "avg" else (norms[0], nn.Identity())
        head = vit.head
        vit.reset_classifier(vit.num_classes, global_pool=pool)  # so that timm writes the place down when it saves
        vit.head = head
        return None

    def recognise(self, network: Network, path: Path, **sizes: Unpack[Sizes]) -> nn.Module | None:
        """Plain ViTs in the naming of timm and of the projects that share it."""
        if not set(self.signs) & network.state.keys():
            return None
        weights.refuse_untold(network.state, path)
        if not weights.is_plain(network.state):
            return None
        architecture = weights.architecture_of(network, path, sizes["image_size"])
        return self.create(**(architecture | arguments_for(sizes)))

    def create(self, **arguments: Any) -> nn.Module:
        """A model of `timm.create_model`, randomly initialised."""
        return cast(nn.Module, timm.create_model(**arguments))

    def standard(self, spec: ViTSpec, num_classes: int, pool: str) -> nn.Module:
        """A plain ViT of the same size, whatever components the network has, as in Li et al. 2024."""
        if not spec.class_token:
            raise UserError(f'{spec.name} has no class token, which a standard ViT has; use components="native"')
        student = self.create(
            model_name="vit_base_patch16_224",
            img_size=spec.image_size,
            patch_size=(spec.image_size[0] // spec.grid[0], spec.image_size[1] // spec.grid[1]),
            in_chans=spec.channels,
            embed_dim=spec.width,
            depth=spec.depth,
            num_heads=spec.heads,
            num_classes=num_classes,
            global_pool=pool if pool in ("token", "avg") else "token",
            pretrained_cfg_overlay={"mean": spec.mean, "std": spec.std},
        )
        self.initialise(student)
        return student

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """The layout of the Hugging Face hub, which `timm.create_model("local-dir:…", pretrained=True)` loads."""
        timm.models.save_for_hf(
            cast(Any, model),
            str(folder),
            model_config={"pretrained_cfg": {"label_names": labels, "num_classes": len(labels)} if labels else {}},
            safe_serialization=True,
        )


def _home(model: nn.Module) -> str:
    """The module of timm that a model's class, or the one it is derived from, is defined in."""
    return next(c.__module__ for c in type(model).__mro__ if c.__module__.startswith("timm."))
