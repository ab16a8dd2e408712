"""One rule for choosing layers and heads, everywhere in the library."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attention_transfer.errors import UserError

Indices = int | str | Sequence[int] | None
"""`None` is all, an integer n is the last n, a sequence names them (negative ones count from the end); in words
"first 6", "last 6", "every 2" (which begins with 0)."""

_IN_WORDS = re.compile(r"(first|last|every) (\d+)")


def select(indices: Indices, total: int, what: str) -> tuple[int, ...]:
    """Resolve a choice of layers or heads, by the rule of timm's `feature_take_indices`.

    Args:
        indices: `None` for all, an integer n for the last n, the indices themselves, negative from the end, or words:
            "first n", "last n", "every n".
        total: how many there are.
        what: what is counted ("layers", "heads"), for the message.

    Returns:
        Sorted indices from 0 to total - 1, each once.

    Raises:
        UserError: nothing is chosen, or an index lies outside the bounds (both are named).
    """
    if indices is None:
        return tuple(range(total))
    if isinstance(indices, str):
        return _in_words(indices, total, what)
    if isinstance(indices, int):
        if not 1 <= indices <= total:
            raise UserError(f"{what}={indices} asks for the last {indices}; choose from 1 to {total}")
        return tuple(range(total - indices, total))
    if not indices:
        raise UserError(f"{what} is empty; leave it out for all {total}, or name some from {-total} to {total - 1}")
    outside = [i for i in indices if not -total <= i < total]
    if outside:
        raise UserError(f"{what} {outside} do not exist; choose from {-total} to {total - 1}")
    return tuple(sorted({i % total for i in indices}))


def _in_words(words: str, total: int, what: str) -> tuple[int, ...]:
    match = _IN_WORDS.fullmatch(words.strip())
    if match is None:
        raise UserError(f'{what} is {words!r}; write "first 6", "last 6" or "every 2", or give indices')
    number = int(match[2])
    if not 1 <= number <= total:
        raise UserError(f"{what}={words!r}: choose a number from 1 to {total}")
    if match[1] == "every":
        return tuple(range(0, total, number))
    return tuple(range(number) if match[1] == "first" else range(total - number, total))
