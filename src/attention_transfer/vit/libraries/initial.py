"""Random weights for a ViT, as in Li et al. 2024 (released training settings)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from attention_transfer.errors import UserError


@dataclass(frozen=True)
class Initial:
    """How parameters are initialised that no module initialises by itself, by the last part of their names.

    Attributes:
        normal: truncated normal, with standard deviation 0.02.
        zero: with zeros.
        scale: with 1e-5, as LayerScale.
    """

    normal: tuple[str, ...] = ("cls_token", "class_token", "pos_embed", "pos_embedding", "in_proj_weight")
    zero: tuple[str, ...] = ("in_proj_bias",)
    scale: tuple[str, ...] = ()


def truncated_normal(weights: Tensor, *, std: float) -> None:
    """Fill weights with timm's truncated normal, whose draws are not those of PyTorch's."""
    from timm.layers import trunc_normal_  # when weights are first made: timm takes long to import

    trunc_normal_(weights, std=std)


def initialise(model: nn.Module, initial: Initial) -> None:
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
        if id(parameter) in done:
            continue
        leaf = name.rpartition(".")[2]
        if leaf in initial.normal:
            truncated_normal(parameter, std=0.02)
        elif leaf in initial.zero:
            nn.init.zeros_(parameter)
        elif leaf in initial.scale:
            nn.init.constant_(parameter, 1e-5)
        else:
            raise UserError(
                f"no initialisation is known for {name} of {type(model).__name__}; "
                'build the student yourself, or with components="standard"'
            )
