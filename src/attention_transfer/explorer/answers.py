"""What goes between the page and the service: plain data with binary buffers, whatever carries them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TypeAlias, get_type_hints

import numpy as np
from torch import Tensor

from attention_transfer.config.values import brought
from attention_transfer.errors import UserError, nearest, raise_all

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        meta: plain data.
        buffers: arrays and pictures, as bytes.
    """

    meta: Mapping[str, Json]
    buffers: tuple[bytes, ...] = ()

    def framed(self) -> bytes:
        """As one body: the length of the JSON (uint32, little endian), the JSON, and the buffers, whose lengths it has.

        A number that JSON has not (NaN, infinity) is an error of the service.
        """
        lengths = [len(buffer) for buffer in self.buffers]
        text = json.dumps({**self.meta, "buffers": lengths}, allow_nan=False, separators=(",", ":")).encode()
        return b"".join([len(text).to_bytes(4, "little"), text, *self.buffers])


def floats(values: Tensor) -> bytes:
    """A tensor as float32, little endian, row by row.

    Raises:
        UserError: it holds NaN or infinity.
    """
    if not bool(values.isfinite().all()):
        raise UserError("the attention is not finite, so that it can't be shown; the run may have diverged")
    return values.detach().float().cpu().contiguous().numpy().astype(np.dtype("<f4")).tobytes()


def call(request: Callable[..., Answer], arguments: Mapping[str, object]) -> Answer:
    """Call a request with arguments of a stranger, brought to the types of its parameters.

    Raises:
        UserError: one is missing, unknown, or of another type; every mistake is listed.
    """
    parameters, kinds = signature(request).parameters, get_type_hints(request)
    problems = [f"there is no argument {name!r}; {nearest(name, parameters)}" for name in arguments.keys() - parameters]
    values = {}
    for name, parameter in parameters.items():
        if name not in arguments:
            problems += [f"{name} is missing; give it"] if parameter.default is Parameter.empty else []
            continue
        try:
            values[name] = brought(arguments[name], kinds[name], name)
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return request(**values)
