"""The vision transformers of timm."""

from __future__ import annotations

import copy
import difflib
import logging
import re
import sys
from pathlib import Path
from typing import Any, Unpack, cast

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import (
    AttentionPoolLatent,
    DiffAttention,
    DropPath,
    GluMlp,
    LayerScale,
    SwiGLU,
    calculate_drop_path_rates,
)
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from attention_transfer.attention import Tokens
from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.files import read_state, unfit, weights_in
from attention_transfer.vit.initialise import initialise
from attention_transfer.vit.libraries.base import (
    SUPPORTED,
    Anatomy,
    Library,
    Sizes,
    ViTSpec,
    deviation,
    missing_part,
    per_channel,
)

log = logging.getLogger("attention_transfer")

_BRANCHES = ("drop_path1", "drop_path2")  # the attention branch and the MLP branch of a block
_PLAIN = (VisionTransformer, VisionTransformerRelPos, Beit, Eva, NaFlexVit)


class Timm(Library):
    """See [`Library`][attention_transfer.vit.libraries.Library]."""

    name = "timm"

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
            tokens=_tokens(vit),
            pool_tokens=_pool_tokens(vit),
        )

    def spec(self, model: nn.Module) -> ViTSpec:
        """Read from the model's attributes and its `pretrained_cfg`."""
        vit: Any = model
        attention: Any = vit.blocks[0].attn
        config = resolve_data_config({}, model=vit)
        channels, height, width = config["input_size"]
        channels = int(getattr(vit, "in_chans", channels))
        heads = int(attention.num_heads)
        image_size, grid = _grid(vit, (int(height), int(width)))
        return ViTSpec(
            name=str(vit.pretrained_cfg.get("architecture", type(model).__name__)),
            library=self.name,
            depth=len(vit.blocks),
            heads=heads,
            head_dim=int(getattr(attention, "head_dim", 0) or round(attention.scale**-2)),
            width=int(vit.embed_dim),
            tokens=_tokens(vit),
            grid=grid,
            image_size=image_size,
            channels=channels,
            mean=per_channel(config["mean"], channels),
            std=deviation(config["std"], channels),
            classes=int(vit.num_classes),
            pool=isinstance(getattr(vit, "attn_pool", None), AttentionPoolLatent),
            pool_tokens=_pool_tokens(vit),
            components=_components(vit, attention),
        )

    def build(self, name: str, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """`timm.create_model`, with its failures said in a sentence."""
        options, num_classes, image_size = _options(sizes), sizes["num_classes"], sizes["image_size"]
        if re.match(r"hf[-_]hub:", name):
            return _from_hub(name, num_classes, pretrained=pretrained, **options)
        architecture = name.split(".", maxsplit=1)[0]
        if not timm.is_model(architecture):
            close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f"did you mean {', '.join(f'timm/{c}' for c in close)}?" if close else "see timm.list_models()"
            raise UserError(f"timm has no model {name!r}; {hint}")
        _refuse_tag(name, pretrained)
        if image_size is not None and architecture.startswith("naflexvit"):  # takes any image; this only says which
            del options["img_size"]
            options["pretrained_cfg_overlay"] = {"input_size": (3, *image_size)}
        try:
            return _named(timm.create_model(name, pretrained=pretrained, **options), num_classes)
        except TypeError as error:
            raise UserError(f"timm/{name} does not take that size ({error}); leave it out") from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise UserError(
                f"the weights of timm/{name} could not be fetched ({type(error).__name__}); connect to the network, or "
                "give a local file with --pretrained FILE, or random weights with --pretrained false"
            ) from error

    def open(self, folder: Path, *, pretrained: bool, **sizes: Unpack[Sizes]) -> nn.Module:
        """Timm's `local-dir:` form."""
        given = {key: value for key, value in _options(sizes).items() if value is not None}
        if pretrained:
            read_state(weights_in(folder))  # says in a sentence what timm would say in a traceback
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
        return _named(model, sizes["num_classes"])

    def with_head(self, model: nn.Module, num_classes: int) -> nn.Module:
        """`reset_classifier` on a copy."""
        student: Any = copy.deepcopy(model).cpu()
        student.reset_classifier(num_classes)
        _forget_names(student)
        return cast(nn.Module, student)

    def head(self, model: nn.Module) -> nn.Linear | None:
        """`get_classifier`, unless the head was left out."""
        head = cast(Any, model).get_classifier()
        return head if isinstance(head, nn.Linear) else None

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """The classifier, and the norm and pooling that only a classifier has."""
        pooled = ("fc_norm.", "attn_pool.") if getattr(model, "global_pool", "token") != "token" else ()
        return ("head.", "head_dist.", *pooled)

    def arranged(self, state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        """Separate q, k and v as the one weight `qkv`; BEiT's one table of all blocks as each block's own."""
        state = _expanded(dict(state), wanted)
        for key in wanted:
            match = re.match(r"(.+\.)qkv\.(weight|bias)$", key)
            if match is None or key in state:
                continue
            for pattern in ("{}", "{}_proj", "to_{}", "w{}"):
                parts = [f"{match[1]}{pattern.format(letter)}.{match[2]}" for letter in "qkv"]
                if all(part in state for part in parts):
                    state[key] = torch.cat([state.pop(part) for part in parts])
        return state

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
        initialise(student)
        return student

    def save(self, model: nn.Module, folder: Path, labels: list[str] | None) -> None:
        """The layout of the Hugging Face hub, which `timm.create_model("local-dir:…", pretrained=True)` loads."""
        timm.models.save_for_hf(
            cast(Any, model),
            str(folder),
            model_config={"pretrained_cfg": {"label_names": labels, "num_classes": len(labels)} if labels else {}},
            safe_serialization=True,
        )


def _expanded(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's one relative position bias of all blocks as each block's own, where the model has these."""
    shared = "rel_pos_bias.relative_position_bias_table"
    tables = [key for key in wanted if key.endswith("attn.relative_position_bias_table")]
    if shared not in state or shared in wanted or not tables:
        return state  # without tables it is refused as left over
    kept = {key: value for key, value in state.items() if not key.startswith("rel_pos_bias.")}
    return {**kept, **{key: state[shared].clone() for key in tables}}


def _options(sizes: Sizes) -> dict[str, Any]:
    """As `timm.create_model` calls them."""
    return {
        "num_classes": sizes["num_classes"],
        "img_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
    }


def _from_hub(name: str, classes: int | None, **options: Any) -> nn.Module:
    """A model that lies on the Hugging Face hub in timm's layout."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return _named(timm.create_model(name, **given), classes)
    except OSError as error:
        raise UserError(
            f"timm/{name} could not be fetched ({type(error).__name__}); check the name, connect to the network, or "
            "name a folder that it was downloaded to (timm/local-dir:FOLDER)"
        ) from error
    except Exception as error:  # values of a wrong type or size make timm fail in any way
        raise unfit(Path(name), error) from error


def _refuse_tag(name: str, pretrained: bool) -> None:
    """Refuse published weights that timm does not have."""
    architecture, _, tag = name.partition(".")
    tags = [found.partition(".")[2] for found in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in tags:
        there = nearest(tag, tags) if tags else "it has none"
        raise UserError(f"timm has no weights {tag!r} of {architecture}; {there}")
    # None for a name that timm has renamed, which it maps to the new one.
    config = timm.models.get_pretrained_cfg(name if tag else architecture)
    if pretrained and config is not None and not config.has_weights:
        raise UserError(
            f"timm/{name} has no published weights; give a local file with --pretrained FILE, or random weights with "
            "--pretrained false"
        )


def _named(model: Any, num_classes: int | None) -> nn.Module:
    """The model, without the names of its classes where it has another number of them."""
    names = model.pretrained_cfg.get("label_names") if hasattr(model, "pretrained_cfg") else None
    if names and num_classes is not None and num_classes != len(names):
        _forget_names(model)
    return cast(nn.Module, model)


def _forget_names(model: Any) -> None:
    """Class names belong to a head that was replaced."""
    for key in ("label_names", "label_descriptions"):
        model.pretrained_cfg.pop(key, None)


def _home(model: nn.Module) -> str:
    """The module of timm that a model's class, or the one it is derived from, is defined in."""
    return next(c.__module__ for c in type(model).__mro__ if c.__module__.startswith("timm."))


def _tokens(vit: Any) -> Tokens:
    prefix: tuple[str, ...] = ()
    if (
        getattr(vit, "cls_token", None) is not None
        or getattr(getattr(vit, "embeds", None), "cls_token", None) is not None
    ):
        prefix += ("class",)
    if getattr(vit, "dist_token", None) is not None:
        prefix += ("distillation",)
    return Tokens(prefix + ("register",) * (int(vit.num_prefix_tokens) - len(prefix)))


def _pool_tokens(vit: Any) -> Tokens:
    """The head pools the patches alone, unless it was told otherwise."""
    tokens = _tokens(vit)
    return tokens if getattr(vit, "pool_include_prefix", True) else Tokens((), tokens.suffix)


def _grid(vit: Any, configured: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
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


def _components(vit: Any, attention: Any) -> frozenset[str]:
    block = vit.blocks[0]
    signs = {
        "LayerScale": isinstance(getattr(block, "ls1", None), LayerScale) or not missing_part(block, "gamma_1"),
        "registers": _tokens(vit).prefix.count("register") > getattr(vit, "test_time_registers", 0),
        "distillation token": "distillation" in _tokens(vit).prefix,
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
