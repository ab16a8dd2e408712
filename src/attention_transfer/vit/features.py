"""A network's features of images: what its classification layer reads, or would read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit.capture import head_of
from attention_transfer.vit.describe import describe


@torch.no_grad()
def features_of(network: nn.Module, inputs: Tensor, *, vit: nn.Module | None = None) -> Tensor:
    """A network's features of normalised images, float32 (B, D), on its device.

    They are what enters the classification layer; in a network without one its output, or the class token (or else the
    mean patch) of the last hidden state that it puts out.

    Args:
        network: what is run.
        inputs: images (B, channels, height, width), as the network takes them.
        vit: the vision transformer in it whose features are taken; default the only one.

    Raises:
        UserError: the network puts out no features.
    """
    vit = network if vit is None else vit
    head = head_of(vit)
    if head is None:
        output: Any = network(inputs)
        states = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
        if not isinstance(states, Tensor):
            raise UserError(f"{type(network).__name__} puts out {type(output).__name__}, which has no features")
        return (states if states.dim() == 2 else _pooled(states, vit)).float()
    entering: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[0]))
    try:
        network(inputs)
    finally:
        handle.remove()
    return entering.pop().float()


def _pooled(states_BND: Tensor, vit: nn.Module) -> Tensor:
    tokens = describe(vit).tokens
    return states_BND[:, 0] if tokens.class_token else states_BND[:, tokens.patches(states_BND.shape[1])].mean(dim=1)
