"""Named parts of a plain ViT: which parameters they are, how to take them from another network, how to freeze them.

Parts overlap: the norm of a block is one of the "norms" and of the "blocks". What belongs to no other part, as
LayerScale does, belongs to "blocks" and "all".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.config.choices import Part
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.vit.copies import plain
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
    return _Network(model).part(part)


@torch.no_grad()
def take_part(student: nn.Module, source: nn.Module, parts: Sequence[Part]) -> list[str]:
    """Copy parts of a network into a student of the same shapes, in place; all else stays.

    The source may have a head or lack one: Hugging Face's names with and without the backbone's prefix are the same.
    Running statistics of batch norms are taken with the parameters of their layers.

    Args:
        student: a plain vision transformer.
        source: another one, of the same library.
        parts: what to take.

    Returns:
        The student's names of what was taken.

    Raises:
        UserError: a part is unknown or one of the two lacks it, the libraries differ, or a parameter is missing or has
            another shape in one of the two; nothing is taken then.
    """
    raise_all(parts_problems(parts))
    here, there = _Network(student), _Network(plain(source))
    if here.library.name != there.library.name:
        raise UserError(
            f"a student of {here.library.name} can't take parts of a model of {there.library.name}; "
            "make both with one library"
        )
    here_prefix, there_prefix = _prefixes(here, there)
    wanted, given = here.values(parts, here_prefix), there.values(parts, there_prefix)
    _check_values(here, wanted, given)
    for key, value in wanted.items():
        value.selected.copy_(given[key].selected)
    return [value.name for value in wanted.values()]


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
    network = _Network(model)
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


@dataclass(frozen=True)
class _Value:
    """A parameter or buffer, and the rows of it that are taken."""

    name: str
    tensor: Tensor
    rows: Rows

    @property
    def selected(self) -> Tensor:
        return self.tensor if self.rows is None else self.tensor[self.rows]


class _Network:
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

    def values(self, parts: Sequence[Part], prefix: str) -> dict[str, _Value]:
        """The values of parts by their names without a prefix, with the buffers of the modules they belong to."""
        chosen = self.parts(parts)
        owners = {name.rpartition(".")[0] for name, rows in chosen.items() if rows is None}
        found = [_Value(name, self.parameters[name], rows) for name, rows in chosen.items()]
        saved = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved and ("all" in parts or name.rpartition(".")[0] in owners):
                found.append(_Value(name, buffer, None))
        return {value.name.removeprefix(prefix): value for value in found}

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


def _embeddings(network: _Network) -> set[str]:
    """Whatever is registered before the first block, since each library has its own names, and positions elsewhere."""
    blocks = _blocks(network)
    before = set(itertools.takewhile(lambda name: name not in blocks, network.parameters))
    between = {name for name in network.parameters if "position_embedding" in name}  # of YOLOS
    return (before | between) - _attention(network) - _pool(network)


def _blocks(network: _Network) -> set[str]:
    return network.under(network.anatomy.blocks)


def _attention(network: _Network) -> set[str]:
    beside = {name for name in network.parameters if network.library.attention_positions.search(name)}
    return network.under(network.anatomy.attention) | beside


def _projections(network: _Network, *kinds: Literal["fused", "queries_and_keys", "values"]) -> set[str]:
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


def _mlp(network: _Network) -> set[str]:
    """Children of a block that hold linear layers and no attention; Hugging Face has two in some families."""
    attention = {id(module) for module in network.anatomy.attention}
    children = [child for block in network.anatomy.blocks for child in block.children()]
    return network.under(
        child
        for child in children
        if any(isinstance(module, nn.Linear) for module in child.modules())
        and not any(id(module) in attention for module in child.modules())
    )


def _norms(network: _Network) -> set[str]:
    """Modules that are called norms, since each library has some of its own, and hold no other layers."""
    named = [module for module in network.model.modules() if "norm" in type(module).__name__.lower()]
    return network.under(m for m in named if not any(list(child.parameters()) for child in m.children()))


def _pool(network: _Network) -> set[str]:
    named = {name for name in network.parameters if network.library.pools.search(name)}
    if network.anatomy.pool is None:
        return named
    own = network.name_of(network.anatomy.pool)
    place = own.rpartition(".")[0] or own  # transformers' head has its query and its MLP beside the attention
    return named | {name for name in network.parameters if name.startswith(f"{place}.")}


def _head(network: _Network) -> set[str]:
    beginnings = network.library.head_names(network.model)  # of the norm and the pool before it, too
    return {name for name in network.parameters if name.startswith(beginnings)} - _norms(network) - _pool(network)


_FINDERS: dict[Part, Callable[[_Network], set[str]]] = {
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


def _prefixes(here: _Network, there: _Network) -> tuple[str, str]:
    """The beginnings of names that one network has and the other lacks, where one of them is inside a classifier."""
    own, other = (network.name_of(network.anatomy.blocks[0]) for network in (here, there))
    if own.endswith(f".{other}"):
        return own.removesuffix(other), ""
    if other.endswith(f".{own}"):
        return "", other.removesuffix(own)
    return "", ""


def _check_values(student: _Network, wanted: dict[str, _Value], given: dict[str, _Value]) -> None:
    """Refuse the first value that only one of the two has, or that has another shape."""
    for key in {**wanted, **given}:
        if key not in given:
            raise UserError(f"the source has no {wanted[key].name}, which the student has; take other parts")
        if key not in wanted:
            raise UserError(f"the student has no place for the source's {given[key].name}; take other parts")
        here, there = tuple(wanted[key].tensor.shape), tuple(given[key].tensor.shape)
        if here != there:
            of_head = wanted[key].name in _head(student)
            fix = "leave the head out, which is for other classes" if of_head else "take other parts"
            raise UserError(f"{wanted[key].name} is {here} in the student and {there} in the source; {fix}")
