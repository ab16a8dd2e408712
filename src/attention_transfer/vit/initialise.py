"""Random weights for a ViT of timm or torchvision, as in Li et al. 2024 (released training settings)."""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import nn

from attention_transfer.errors import UserError

# Parameters that no module initialises by itself, by the last part of their names.
_NORMAL = (
    "cls_token",
    "class_token",
    "reg_token",
    "dist_token",
    "latent",
    "in_proj_weight",
    "pos_embed",
    "pos_embedding",
    "pos_embed_y",
    "pos_embed_x",
    "relative_position_bias_table",
)
_ZERO = ("q_bias", "k_bias", "v_bias", "in_proj_bias")
_LAYER_SCALE = ("gamma_1", "gamma_2")  # of BEiT and EVA


def initialise(model: nn.Module) -> None:
    """Initialise every parameter of a ViT at random, in place: linear layers and tokens truncated normal, 0.02.

    Raises:
        UserError: a parameter has no known initialisation.
    """
    done: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif own and callable(reset := getattr(module, "reset_parameters", None)):
            reset()  # convolutions, norms, LayerScale
        else:
            continue
        done |= {id(p) for p in own}
    for name, parameter in model.named_parameters():
        if id(parameter) not in done:
            _initialise_by_name(model, name, parameter)


def _initialise_by_name(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    leaf = name.rpartition(".")[2]
    if leaf in _NORMAL:
        trunc_normal_(parameter, std=0.02)
    elif leaf in _ZERO:
        nn.init.zeros_(parameter)
    elif leaf in _LAYER_SCALE:
        nn.init.constant_(parameter, 1e-5)
    else:
        raise UserError(
            f"no initialisation is known for {name} of {type(model).__name__}; "
            'build the student yourself, or with components="standard"'
        )
