"""Named parts of a plain ViT: which parameters they are.

Parts overlap: the norm of a block is one of the "norms" and of the "blocks". What belongs to no other part, as
LayerScale does, belongs to "blocks" and "all".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from torch import nn

from attention_transfer.config.choices import Part
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.vit.libraries import anatomy, library_of, unwrapped

PARTS: tuple[Part, ...] = get_args(Part)
Rows = slice | None
"""Which rows of a parameter belong to a part; `None` is all of them."""


def parts_problems(parts: Sequence[str]) -> list[str]:
    """What is wrong with the names of parts, a sentence each that names the nearest valid one."""
    return [f"there is no part {part!r}; {nearest(part, PARTS)}" for part in parts if part not in PARTS]


def parameters_of(model: nn.Module, part: Part) -> dict[str, slice | None]:
    """The parameters of a part.

    Args:
        model: a plain vision transformer.
        part: see `Part`.

    Returns:
        By name (out of the wrappers of `torch.compile` and `DistributedDataParallel`), in the model's order: the rows
        that belong to the part, or `None` where the whole parameter does. Empty where the model has no such part.

    Raises:
        UserError: the part is unknown, the model is no plain vision transformer, or its queries and keys can't be told
            from its other projections.
    """
    raise_all(parts_problems([part]))
    return PartedNetwork(model).part(part)


class PartedNetwork:
    """A ViT, whose parts are looked for."""

    def __init__(self, model: nn.Module) -> None:
        self.anatomy = anatomy(model)
        self.model = unwrapped(model)
        self.library = library_of(model)
        self.parameters = dict(self.model.named_parameters())
        self._names: dict[int, str] = {id(parameter): name for name, parameter in self.parameters.items()}
        self._modules: dict[int, str] = {id(module): name for name, module in self.model.named_modules()}

    def part(self, part: Part) -> dict[str, Rows]:
        """Names of a part's parameters, in the model's order, with their rows."""
        names = _FINDERS[part](self)
        return {name: self._rows(name, part) for name in self.parameters if name in names}

    def parts(self, parts: Sequence[Part]) -> dict[str, Rows]:
        """The union of several parts, each of which must be there."""
        found: dict[str, Rows] = {}
        for part in parts:
            own = self.part(part)
            if not own:
                raise UserError(f"{type(self.model).__name__} has no parameters in the part {part!r}; leave it out")
            found |= {name: rows if found.get(name, rows) == rows else None for name, rows in own.items()}
        return {name: found[name] for name in self.parameters if name in found}

    def without(self, chosen: dict[str, Rows], kept: dict[str, Rows]) -> dict[str, Rows]:
        """What is chosen and not kept. Rows of a part that are not all are those of queries and keys, the first."""
        rest = {name: rows for name, rows in chosen.items() if name not in kept}
        for name, rows in kept.items():
            if rows is not None and name in chosen and chosen[name] is None:
                rest[name] = slice(rows.stop, len(self.parameters[name]))
        return {name: rest[name] for name in chosen if name in rest}

    def name_of(self, module: nn.Module) -> str:
        """Where a module is."""
        return self._modules[id(module)]

    def under(self, modules: Iterable[nn.Module]) -> set[str]:
        """Names of the parameters of modules."""
        return {self._names[id(parameter)] for module in modules for parameter in module.parameters()}

    def _rows(self, name: str, part: Part) -> Rows:
        if part != "qk" or not self.library.fused.search(name):
            return None
        return slice(0, 2 * len(self.parameters[name]) // 3)


def _embeddings(network: PartedNetwork) -> set[str]:
    """Whatever is registered before the first block, since each library has its own names, and positions elsewhere."""
    blocks = _blocks(network)
    before = set(itertools.takewhile(lambda name: name not in blocks, network.parameters))
    between = {name for name in network.parameters if network.library.later_embeddings.search(name)}
    return (before | between) - _attention(network) - _pool(network)


def _blocks(network: PartedNetwork) -> set[str]:
    return network.under(network.anatomy.blocks)


def _attention(network: PartedNetwork) -> set[str]:
    beside = {name for name in network.parameters if network.library.attention_positions.search(name)}
    return network.under(network.anatomy.attention) | beside


def _projections(network: PartedNetwork, *kinds: Literal["fused", "queries_and_keys", "values"]) -> set[str]:
    patterns: list[re.Pattern[str]] = [getattr(network.library, kind) for kind in kinds]
    found = set()
    for module in network.anatomy.attention:
        own = {name for name in network.under([module]) if any(pattern.search(name) for pattern in patterns)}
        if not own:
            raise UserError(
                f"{network.name_of(module)} ({type(module).__name__}) has projections under unknown names, so that its "
                'queries, keys and values can\'t be told apart; choose "attention", the whole module'
            )
        found |= own
    return found


def _mlp(network: PartedNetwork) -> set[str]:
    """Children of a block that hold linear layers and no attention; Hugging Face has two in some families."""
    attention = {id(module) for module in network.anatomy.attention}
    children = [child for block in network.anatomy.blocks for child in block.children()]
    return network.under(
        child
        for child in children
        if any(isinstance(module, nn.Linear) for module in child.modules())
        and not any(id(module) in attention for module in child.modules())
    )


def _norms(network: PartedNetwork) -> set[str]:
    """Modules that are called norms, since each library has some of its own, and hold no other layers."""
    named = [module for module in network.model.modules() if "norm" in type(module).__name__.lower()]
    return network.under(m for m in named if not any(list(child.parameters()) for child in m.children()))


def _pool(network: PartedNetwork) -> set[str]:
    named = {name for name in network.parameters if network.library.pools.search(name)}
    if network.anatomy.pool is None:
        return named
    return named | network.under([network.anatomy.pool_head or network.anatomy.pool])


def _head(network: PartedNetwork) -> set[str]:
    beginnings = network.library.head_names(network.model)  # of the norm and the pool before it, too
    return {name for name in network.parameters if name.startswith(beginnings)} - _norms(network) - _pool(network)


_FINDERS: dict[Part, Callable[[PartedNetwork], set[str]]] = {
    "all": lambda network: set(network.parameters),
    "embeddings": _embeddings,
    "blocks": _blocks,
    "attention": _attention,
    "qkv": lambda network: _projections(network, "fused", "queries_and_keys", "values"),
    "qk": lambda network: _projections(network, "fused", "queries_and_keys"),
    "mlp": _mlp,
    "norms": _norms,
    "pool": _pool,
    "head": _head,
}
