"""Weights files under timm's names: the architecture that they are of, and their names as a model has them."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries.base import Network
from attention_transfer.vit.libraries.description import IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger("attention_transfer")

# Heads can't be read from shapes. These are the published ones; elsewhere a head has 64 dimensions.
_HEADS = {1280: 16, 1152: 16, 1408: 16}
# Signs of what shapes do not tell: BEiT and EVA, rotary and relative positions, pooling heads (SigLIP, PE), and the
# activation of networks with a norm before the blocks (CLIP's is GELU or its quick form).
_UNTOLD = ("relative_position_bias_table", "gamma_1", "rope", "rel_pos", "attn_pool.", "norm_pre.")
_NEEDED = ("blocks.0.norm1.weight", "pos_embed")

State = dict[str, Tensor]


def is_plain(state: State) -> bool:
    """Whether weights are those of a plain ViT, as timm, MAE, DINO, DINOv2, iBOT, MSN, MoCo v3 and DeiT name them."""
    kernel = state.get("patch_embed.proj.weight")
    hidden = any(f"blocks.0.mlp.{name}.weight" in state for name in ("w12", "fc1"))
    return kernel is not None and kernel.dim() == 4 and hidden and all(key in state for key in _NEEDED)


def architecture_of(network: Network, path: Path, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Arguments of `timm.create_model` for the weights of a plain ViT.

    Logs what it read, and what it takes for granted: the number of heads is the usual one of that width, and images are
    normalised with the mean and deviation of ImageNet, as all these projects do.

    Args:
        network: what was read from the file.
        path: the file, for messages.
        image_size: that of the file's own images, where its patches make no square. Where they could make one, they are
            taken for it.

    Raises:
        UserError: its image size must be said.
    """
    state = network.state
    kernel = state["patch_embed.proj.weight"]
    patch = (int(kernel.shape[2]), int(kernel.shape[3]))
    grid, positions_of_prefix = _grid(state, patch, path, image_size)
    pixels = (grid[0] * patch[0], grid[1] * patch[1])
    architecture = {
        "model_name": _name(state),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "img_size": pixels,
        "pretrained_cfg_overlay": {
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "input_size": (int(kernel.shape[1]), *pixels),  # from which timm knows the grid to resample from
        },
        **_sizes(state, kernel),
        **_components(state, positions_of_prefix),
        "num_heads": _heads(network, kernel.shape[0]),
    }
    log.debug(
        "%s: read as a ViT with %d blocks of width %d and %d heads, patches of %s, images of %d×%d; it says no "
        "normalisation: that of ImageNet is assumed (mean %s, deviation %s)",
        path,
        architecture["depth"],
        architecture["embed_dim"],
        architecture["num_heads"],
        patch[0] if patch[0] == patch[1] else f"{patch[0]}×{patch[1]}",
        *pixels,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )
    return architecture


def refuse_untold(state: State, path: Path) -> None:
    """Refuse a network that computes more than its shapes tell.

    Raises:
        UserError: it is one; its architecture must be named.
    """
    if any(sign in key for key in state for sign in _UNTOLD):
        raise UserError(
            f"{path} holds a network whose details can't be read from its weights (a BEiT, an EVA, a CLIP, or one with "
            "rotary or relative positions or a pooling head); name the architecture and give the file as its weights: "
            f"timm/<name> --pretrained {path}"
        )


def _name(state: State) -> str:
    """The model of timm that has the parts which arguments do not choose."""
    if "dist_token" in state:
        return "deit_base_distilled_patch16_224"
    # Its MLP is gated with SiLU. Given as an argument, a class could not be saved with the model.
    return "vit_giant_patch14_dinov2" if _gated(state) else "vit_base_patch16_224"


def _gated(state: State) -> bool:
    return "blocks.0.mlp.w12.weight" in state


def _heads(network: Network, width: int) -> int:
    # The small ViT of MoCo v3 has twelve (vits.py); a fine-tuned one is known by the name of its architecture only.
    parts = network.place.split(".")
    moco = bool({"base_encoder", "momentum_encoder"} & set(parts))
    if width == 384 and (moco or (network.arch == "vit_small" and network.place == "state_dict.module.")):
        return 12
    return _HEADS.get(width, max(1, width // 64))


def _grid(
    state: State, patch: tuple[int, int], path: Path, image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], int]:
    """The patch grid, and how many of the positions are those of the class token and its like."""
    tokens = ("cls_token" in state) + ("dist_token" in state)
    count = int(state["pos_embed"].shape[1])
    choices = (0, tokens, tokens + _registers(state))
    for prefix in choices:
        side = math.isqrt(max(count - prefix, 0))
        if side and side * side == count - prefix:
            _say_square(side, patch, path, image_size)
            return (side, side), prefix
    if image_size is not None:
        rows, columns = image_size[0] // patch[0], image_size[1] // patch[1]
        for prefix in choices:
            if rows * columns == count - prefix:
                return (rows, columns), prefix
    raise UserError(
        f"the {count} positions of {path} are not those of a square image; pass its image size as (height, width), in "
        f"pixels, with patches of {patch[0]}×{patch[1]}"
    )


def _say_square(side: int, patch: tuple[int, int], path: Path, image_size: tuple[int, int] | None) -> None:
    """Warn where the patches could be those of the image that was asked for, too."""
    if image_size is None:
        return
    rows, columns = image_size[0] // patch[0], image_size[1] // patch[1]
    if rows * columns == side * side and rows != side:
        log.warning(
            "%s: its %d positions are taken for those of %d×%d patches, and resampled to %d×%d",
            path,
            side * side,
            side,
            side,
            rows,
            columns,
        )


def _registers(state: State) -> int:
    return next((int(state[key].shape[1]) for key in ("reg_token", "register_tokens") if key in state), 0)


def _sizes(state: State, kernel: Tensor) -> dict[str, Any]:
    width, channels = int(kernel.shape[0]), int(kernel.shape[1])
    hidden = int(state[f"blocks.0.mlp.{'w12' if _gated(state) else 'fc1'}.weight"].shape[0])
    ratio = hidden / width
    head = state.get("head.weight")
    return {
        "embed_dim": width,
        "depth": len({m[1] for key in state if (m := re.match(r"blocks\.(\d+)\.", key))}),
        # timm rounds the product down
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "in_chans": channels,
        "num_classes": 0 if head is None or head.dim() != 2 else int(head.shape[0]),
    }


def _components(state: State, positions_of_prefix: int) -> dict[str, Any]:
    averaged = "fc_norm.weight" in state
    class_token, registers = "cls_token" in state, _registers(state)
    found: dict[str, Any] = {
        "qkv_bias": any(key.endswith(("qkv.bias", "attn.q.bias", "attn.q_proj.bias")) for key in state),
        "global_pool": "avg" if averaged or not class_token else "token",
        "fc_norm": averaged,
        "init_values": 1e-5 if any(".ls1." in key for key in state) else None,
        "qk_norm": any("attn.q_norm" in key for key in state),
        # DINOv2 publishes registers with a position of the class token, which timm adds to that token.
        "no_embed_class": "register_tokens" in state or (not positions_of_prefix and bool(class_token or registers)),
    }
    if registers:
        found["reg_tokens"] = registers
    if "dist_token" not in state:  # the distilled ViT has a class token always
        found["class_token"] = class_token
    return found


def arranged(state: State, wanted: State) -> State:
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


def _expanded(state: State, wanted: State) -> State:
    """BEiT's one relative position bias of all blocks as each block's own, where the model has these."""
    shared = "rel_pos_bias.relative_position_bias_table"
    tables = [key for key in wanted if key.endswith("attn.relative_position_bias_table")]
    if shared not in state or shared in wanted or not tables:
        return state  # without tables it is refused as left over
    kept = {key: value for key, value in state.items() if not key.startswith("rel_pos_bias.")}
    return {**kept, **{key: state[shared].clone() for key in tables}}
