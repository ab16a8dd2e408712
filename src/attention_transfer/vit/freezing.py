"""Freeze parts of a network, also rows of a parameter, so that no step of an optimiser changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.config.choices import Part
from attention_transfer.errors import raise_all
from attention_transfer.vit.parts import PartedNetwork, parts_problems


@dataclass(frozen=True, eq=False)
class Frozen:
    """What `freeze` froze.

    Attributes:
        names: parameters that are frozen as a whole.
        rows: parameters of which only some rows are frozen, with these rows. They get zeros for a gradient; weight
            decay, and the momentum of an optimiser that ran before, would still change them.
    """

    names: tuple[str, ...]
    rows: list[tuple[nn.Parameter, slice]]
    _trainable: list[nn.Parameter] = field(repr=False)
    _handles: list[RemovableHandle] = field(repr=False)

    def release(self) -> None:
        """Make trainable again what was trainable before; a second call does nothing."""
        while self._trainable:
            self._trainable.pop().requires_grad_(True)
        while self._handles:
            self._handles.pop().remove()


def freeze(model: nn.Module, parts: Sequence[Part], *, but: Sequence[Part] = ()) -> Frozen:
    """Freeze parts of a network, in place: `requires_grad` is off, or zeros for a gradient where only rows are frozen.

    A linear probe is `freeze(model, ["all"], but=["head"])`; `but=["qkv", "head"]` trains the projections of queries,
    keys and values too.

    Freeze before the optimiser and any `DistributedDataParallel` are made. Where rows are frozen, the optimiser must
    not decay their weights (see `Frozen.rows`), and a deep copy of the model does not have them frozen. The mode of the
    modules stays as it is: dropout and the running statistics of batch norms continue in train mode.

    Args:
        model: a plain vision transformer.
        parts: what to freeze.
        but: parts that stay as they are, even where they belong to the frozen ones.

    Returns:
        What is frozen, and how to undo it. What was frozen before stays so when it is undone.

    Raises:
        UserError: a part is unknown, or the model lacks it.
    """
    raise_all([*parts_problems(parts), *parts_problems(but)])
    network = PartedNetwork(model)
    chosen = network.without(network.parts(parts), network.parts(but))
    whole = {name: network.parameters[name] for name, place in chosen.items() if place is None}
    trainable = [parameter for parameter in whole.values() if parameter.requires_grad]
    rows = [(network.parameters[name], place) for name, place in chosen.items() if place is not None]
    rows = [(parameter, place) for parameter, place in rows if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    handles = [parameter.register_hook(partial(_zeroed, place)) for parameter, place in rows]
    return Frozen(tuple(whole), rows, trainable, handles)


def _zeroed(rows: slice, gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[rows] = 0  # and not a product with zero, which keeps what is not finite
    return gradient
