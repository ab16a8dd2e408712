"""Test-time registers: what makes artefacts of patches is moved to a token that was added for it.

Source: Jiang, Dravid, Efros and Gandelsman, Vision transformers don't need trained registers, arXiv 2506.08010. A few
hidden units of the MLPs, the register neurons, make some patches tokens of high norm that draw attention. Their
activations are moved to one more register, which starts as zeros; nothing is trained.

Shapes: B images, N tokens, P patches, U hidden units of an MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import anatomy, unwrapped

HIGH_NORM = 3.0
"""A patch is an artefact where the norm of its block output is this many times the median of the image's patches."""

COUNT = 10
"""How many register neurons are moved; the paper takes 10 of OpenCLIP's ViT-B."""


@dataclass(frozen=True)
class RegisterNeurons:
    """Hidden units that make artefacts.

    Attributes:
        units: by the index of the block, which units of its MLP.
        block: the first block whose outputs have artefacts; units of later ones were not looked at.
        artefacts: how many patches of an image are artefacts there, mean over images.
    """

    units: Mapping[int, tuple[int, ...]]
    block: int
    artefacts: float

    def __str__(self) -> str:
        return (
            f"{sum(map(len, self.units.values()))} register neurons in blocks {', '.join(map(str, self.units))}, of "
            f"{self.artefacts:.1f} artefacts an image from block {self.block} on"
        )


class NoArtefacts(UserError):
    """There is nothing to repair."""


@torch.no_grad()
def find_register_neurons(model: nn.Module, inputs: Iterable[Tensor], *, count: int = COUNT) -> RegisterNeurons:
    """Find the units that are most active at artefacts, mean over these, up to the block in which artefacts begin.

    That block is the first with half as many artefacts as the block that has most.

    Args:
        model: a plain ViT of timm, in eval mode.
        inputs: batches of normalised images, (B, channels, height, width); they are gone through twice, so a list.
        count: how many units.

    Raises:
        NoArtefacts: no patch is one.
        UserError: the model's MLPs can't be read, there are no images, or count is below 1.
    """
    if count < 1:
        raise UserError(f"count is {count}; give at least 1 register neuron")
    acts, batches = _activations(model), list(inputs)
    if not batches:
        raise UserError("there are no images to find register neurons on; give at least one batch")
    blocks, patches = anatomy(model).blocks, describe(model).tokens.patches
    outputs: dict[int, Tensor] = {}
    hidden: dict[int, Tensor] = {}

    def keep(into: dict[int, Tensor], layer: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        into[layer] = output

    def artefacts(layer: int) -> Tensor:
        """Which patches are, (B, P)."""
        norms_BN = outputs[layer].float().norm(dim=-1)
        norms_BP: Tensor = norms_BN[:, patches(norms_BN.shape[1])]
        return norms_BP > HIGH_NORM * norms_BP.median(dim=1, keepdim=True).values

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(partial(keep, outputs, layer)).remove)
        counts = torch.zeros(len(blocks))
        for batch in batches:
            model(batch)
            counts += torch.stack([artefacts(layer).sum().cpu() for layer in range(len(blocks))])
        images = sum(len(batch) for batch in batches)
        if not counts.any():
            raise NoArtefacts(
                f"no patch of {images} images has an output of more than {HIGH_NORM:g} times the median norm: there is "
                "nothing to repair; leave repair out"
            )
        begin = int((counts >= counts.max() / 2).nonzero()[0])
        for layer, act in enumerate(acts[: begin + 1]):
            stack.callback(act.register_forward_hook(partial(keep, hidden, layer)).remove)
        sums = [0.0 * next(model.parameters()).new_zeros(1) for _ in range(begin + 1)]
        for batch in batches:
            model(batch)
            which = artefacts(begin)
            for layer in range(begin + 1):
                h_BNU = hidden[layer]
                sums[layer] = sums[layer] + h_BNU[:, patches(h_BNU.shape[1])][which].float().sum(dim=0)
    means_LU = torch.stack(sums) / counts[begin].to(sums[0])
    best = means_LU.flatten().topk(min(count, means_LU.numel())).indices.tolist()
    found: dict[int, tuple[int, ...]] = {}
    for place in sorted(best):
        layer, unit = divmod(place, means_LU.shape[1])
        found[layer] = (*found.get(layer, ()), unit)
    return RegisterNeurons(found, begin, float(counts[begin]) / images)


def add_register(model: nn.Module, neurons: RegisterNeurons) -> None:
    """Give a model one more register, in place, to which the activations of register neurons are moved.

    At a register neuron, the new token gets the largest activation of all tokens, and patches get 0; the class token
    and other registers keep theirs. Gradients flow, and a deep copy has the register, too.

    Args:
        model: a plain ViT of timm.
        neurons: which units, as `find_register_neurons` found them.

    Raises:
        UserError: the model's MLPs can't be read, or it lacks such units.
    """
    acts, bare = _activations(model), cast(Any, unwrapped(model))
    widths = [cast(Any, block).mlp.fc1.out_features for block in anatomy(model).blocks]
    if lost := [f"{n}.{u}" for n, units in neurons.units.items() for u in units if n >= len(widths) or u >= widths[n]]:
        raise UserError(
            f"{type(bare).__name__} has no hidden units {', '.join(lost)}; find register neurons on it itself"
        )
    place = int(bare.num_prefix_tokens)
    zeros = bare.pos_embed.new_zeros(1, 1, bare.pos_embed.shape[-1])
    bare.reg_token = nn.Parameter(zeros if bare.reg_token is None else torch.cat([bare.reg_token, zeros], dim=1))
    bare.num_reg_tokens += 1
    bare.num_prefix_tokens += 1
    bare.test_time_registers = getattr(bare, "test_time_registers", 0) + 1  # which no student has to have
    if not bare.no_embed_class:
        parts = [bare.pos_embed[:, :place], zeros, bare.pos_embed[:, place:]]
        bare.pos_embed = nn.Parameter(torch.cat(parts, dim=1).detach())
    for layer, units in neurons.units.items():
        mlp = cast(Any, anatomy(model).blocks[layer]).mlp
        mlp.act = MovedActivation(acts[layer], torch.tensor(units, device=zeros.device), place)


def remove_register(model: nn.Module) -> None:
    """Take the register that `add_register` gave a model last off it, in place; its weights are as they were.

    Raises:
        UserError: it has none.
    """
    if not is_repaired(model):
        raise UserError(f"{type(model).__name__} has no test-time register to take off")
    bare = cast(Any, unwrapped(model))
    bare.test_time_registers -= 1
    bare.num_reg_tokens -= 1
    bare.num_prefix_tokens -= 1
    place = int(bare.num_prefix_tokens)
    bare.reg_token = nn.Parameter(bare.reg_token[:, :-1].detach()) if bare.num_reg_tokens else None
    if not bare.no_embed_class:
        kept = torch.cat([bare.pos_embed[:, :place], bare.pos_embed[:, place + 1 :]], dim=1)
        bare.pos_embed = nn.Parameter(kept.detach())
    for block in anatomy(model).blocks:
        mlp = cast(Any, block).mlp
        if isinstance(mlp.act, MovedActivation) and mlp.act.place == place:
            mlp.act = mlp.act.act


def is_repaired(model: nn.Module) -> bool:
    """Whether a model has a register that `add_register` gave it."""
    return getattr(unwrapped(model), "test_time_registers", 0) > 0


def check_repairable(model: nn.Module) -> None:
    """Check that a model can get a test-time register.

    Raises:
        UserError: it is none of timm's plain ViTs.
    """
    _activations(model)


class MovedActivation(nn.Module):
    """An activation function, and after it the units that are moved to one token."""

    units: Tensor

    def __init__(self, act: nn.Module, units: Tensor, place: int) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("units", units, persistent=False)
        self.place = place

    def forward(self, x_BNU: Tensor) -> Tensor:
        """What goes on to the second layer of the MLP."""
        h_BNU: Tensor = self.act(x_BNU)
        own = h_BNU.index_select(-1, self.units)
        moved = torch.cat(
            [own[:, : self.place], own.amax(dim=1, keepdim=True), torch.zeros_like(own[:, self.place + 1 :])], dim=1
        )
        return h_BNU.index_copy(-1, self.units, moved)


def _activations(model: nn.Module) -> list[nn.Module]:
    """The activation function of each block's MLP.

    Raises:
        UserError: the model is none of timm's plain ViTs.
    """
    bare = unwrapped(model)
    mlps = [getattr(block, "mlp", None) for block in anatomy(model).blocks]
    acts = [getattr(mlp, "act", None) for mlp in mlps]
    plain = all(hasattr(mlp, "fc1") for mlp in mlps) and all(isinstance(act, nn.Module) for act in acts)
    tokens = all(hasattr(bare, name) for name in ("reg_token", "num_reg_tokens", "no_embed_class"))
    if not (plain and tokens and isinstance(getattr(bare, "pos_embed", None), Tensor)):
        raise UserError(
            f"{type(bare).__name__} can't be repaired: a register is added to plain ViTs of timm with position "
            "embeddings alone; leave repair out"
        )
    return cast("list[nn.Module]", acts)
