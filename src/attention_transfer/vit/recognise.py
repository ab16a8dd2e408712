"""The architecture of a plain ViT, read from the shapes of its weights."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

from timm.layers import SwiGLUPacked
from torch import Tensor

from attention_transfer.errors import UserError

log = logging.getLogger("attention_transfer")

# Heads can't be read from shapes. These are the published ones; elsewhere a head has 64 dimensions.
_HEADS = {1280: 16, 1152: 16, 1408: 16}


def architecture_of(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Arguments of `timm.create_model` for a file in the naming of timm, MAE, DINO, DINOv2, iBOT, MSN, MoCo v3 or DeiT.

    Logs what it read. The number of heads is the usual one of that width.

    Raises:
        UserError: the file does not hold such a ViT; its architecture must be named.
    """
    mend = f"name the architecture and give the file as its weights: timm/<name> --pretrained {path}"
    blocks = {int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))}
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.dim() != 4 or not blocks or "blocks.0.norm1.weight" not in state:
        raise UserError(f"the architecture of {path} can't be read from its weights; {mend}")
    if any("relative_position_bias_table" in key or "gamma_1" in key or "rope" in key for key in state):
        raise UserError(f"{path} holds a BEiT or EVA, whose details can't be read from its weights; {mend}")
    width, channels, patch = kernel.shape[0], kernel.shape[1], kernel.shape[-1]
    registers = next((state[key].shape[1] for key in ("reg_token", "register_tokens") if key in state), 0)
    prefix = ("cls_token" in state) + ("dist_token" in state)
    positions = state["pos_embed"].shape[1]
    side = math.isqrt(positions)
    has_prefix = side * side != positions
    side = math.isqrt(positions - (prefix if has_prefix else 0))
    gated = "blocks.0.mlp.w12.weight" in state
    hidden = state["blocks.0.mlp.w12.weight" if gated else "blocks.0.mlp.fc1.weight"].shape[0]
    head = state.get("head.weight")
    architecture: dict[str, Any] = {
        "model_name": "deit_base_distilled_patch16_224" if "dist_token" in state else "vit_base_patch16_224",
        "embed_dim": width,
        "depth": len(blocks),
        "num_heads": _HEADS.get(width, max(1, width // 64)),
        "mlp_ratio": hidden / width,
        "patch_size": patch,
        "img_size": (side * patch, side * patch),
        "in_chans": channels,
        "class_token": "cls_token" in state,
        "num_classes": 0 if head is None or head.dim() != 2 else head.shape[0],
        "qkv_bias": any(key.endswith(("qkv.bias", "attn.q.bias", "attn.q_proj.bias")) for key in state),
        "global_pool": "avg" if "fc_norm.weight" in state or "cls_token" not in state else "token",
    }
    if registers:
        architecture |= {"reg_tokens": registers, "no_embed_class": True}
    if any(".ls1." in key for key in state):
        architecture["init_values"] = 1e-5
    if any(key.startswith("norm_pre.") for key in state):
        architecture["pre_norm"] = True
    if any("attn.q_norm" in key for key in state):
        architecture["qk_norm"] = True
    if gated:
        architecture["mlp_layer"] = SwiGLUPacked
    if "dist_token" in state:
        architecture.pop("class_token")
    log.info(
        "%s: read as a ViT with %d blocks of width %d and %d heads, patches of %d, images of %d×%d",
        path,
        len(blocks),
        width,
        architecture["num_heads"],
        patch,
        *architecture["img_size"],
    )
    return architecture
