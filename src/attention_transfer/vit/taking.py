"""Take parts of a network into another one of the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_transfer.config.choices import Part
from attention_transfer.errors import UserError, raise_all
from attention_transfer.vit.copies import plain
from attention_transfer.vit.parts import PartedNetwork, Rows, parts_problems


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
    here, there = PartedNetwork(student), PartedNetwork(plain(source))
    if here.library.name != there.library.name:
        raise UserError(
            f"a student of {here.library.name} can't take parts of a model of {there.library.name}; "
            "make both with one library"
        )
    here_prefix, there_prefix = _prefixes(here, there)
    wanted, given = _values(here, parts, here_prefix), _values(there, parts, there_prefix)
    _check_values(here, wanted, given)
    for key, value in wanted.items():
        value.selected.copy_(given[key].selected)
    return [value.name for value in wanted.values()]


@dataclass(frozen=True)
class _Value:
    """A parameter or buffer, and the rows of it that are taken."""

    name: str
    tensor: Tensor
    rows: Rows

    @property
    def selected(self) -> Tensor:
        return self.tensor if self.rows is None else self.tensor[self.rows]


def _values(network: PartedNetwork, parts: Sequence[Part], prefix: str) -> dict[str, _Value]:
    """The values of parts by their names without a prefix, with the buffers of the modules they belong to."""
    chosen = network.parts(parts)
    owners = {name.rpartition(".")[0] for name, rows in chosen.items() if rows is None}
    found = [_Value(name, network.parameters[name], rows) for name, rows in chosen.items()]
    saved = network.model.state_dict().keys()
    for name, buffer in network.model.named_buffers():
        if name in saved and ("all" in parts or name.rpartition(".")[0] in owners):
            found.append(_Value(name, buffer, None))
    return {value.name.removeprefix(prefix): value for value in found}


def _prefixes(here: PartedNetwork, there: PartedNetwork) -> tuple[str, str]:
    """The beginnings of names that one network has and the other lacks, where one of them is inside a classifier."""
    own, other = (network.name_of(network.anatomy.blocks[0]) for network in (here, there))
    if own.endswith(f".{other}"):
        return own.removesuffix(other), ""
    if other.endswith(f".{own}"):
        return "", other.removesuffix(own)
    return "", ""


def _check_values(student: PartedNetwork, wanted: dict[str, _Value], given: dict[str, _Value]) -> None:
    """Refuse the first value that only one of the two has, or that has another shape."""
    for key in {**wanted, **given}:
        if key not in given:
            raise UserError(f"the source has no {wanted[key].name}, which the student has; take other parts")
        if key not in wanted:
            raise UserError(f"the student has no place for the source's {given[key].name}; take other parts")
        here, there = tuple(wanted[key].tensor.shape), tuple(given[key].tensor.shape)
        if here != there:
            of_head = wanted[key].name in student.part("head")
            fix = "leave the head out, which is for other classes" if of_head else "take other parts"
            raise UserError(f"{wanted[key].name} is {here} in the student and {there} in the source; {fix}")
