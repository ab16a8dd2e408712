"""Random weights for a ViT of timm or torchvision, as in Li et al. 2024 (released training settings)."""

from __future__ import annotations

from torch import Tensor, nn

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


def truncated_normal(weights: Tensor, *, std: float) -> None:
    """Fill weights with timm's truncated normal, whose draws are not those of PyTorch's."""
    from timm.layers import trunc_normal_  # when weights are first made: timm takes long to import

    trunc_normal_(weights, std=std)


def initialise(model: nn.Module) -> None:
    """Initialise every parameter of a ViT at random, in place: linear layers and tokens truncated normal, 0.02.

    Raises:
        UserError: a parameter has no known initialisation.
    """
    done: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear):
            truncated_normal(module.weight, std=0.02)
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
        truncated_normal(parameter, std=0.02)
    elif leaf in _ZERO:
        nn.init.zeros_(parameter)
    elif leaf in _LAYER_SCALE:
        nn.init.constant_(parameter, 1e-5)
    else:
        raise UserError(
            f"no initialisation is known for {name} of {type(model).__name__}; "
            'build the student yourself, or with components="standard"'
        )
