"""What the comparisons found, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attention_transfer.experiments.statistics.differences import Difference
from attention_transfer.experiments.statistics.equal_labels import EqualLabels
from attention_transfer.experiments.statistics.intervals import Interval
from attention_transfer.experiments.statistics.sequential import Sequential

_NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def sentence(method: str, other: str, found: Difference | Sequential, minutes: float | None = None) -> str:
    """A comparison in words, such as "gta is better than finetune: +2.1 points (0.9 to 3.4), p = 0.031, six seeds".

    Values are shares in [0, 1]; points are hundredths. Minutes are those of the further seeds on one worker.
    """
    between = {
        "better": f"{method} is better than {other}",
        "worse": f"{method} is worse than {other}",
        "equivalent": f"{method} is as good as {other} (within ±{_points(found.margin or 0)} points)",
        "undecided": f"undecided between {method} and {other}",
    }[found.verdict]
    parts = [points(found.interval)]
    if isinstance(found, Difference):
        parts.append(p_text(found.p))
    text = f"{between}: {', '.join([*parts, counted(found.seeds, 'seed')])}"
    if found.verdict == "undecided":
        text += f"; {more_text(found.more, minutes)}"
    return text


def more_text(more: int | None, minutes: float | None = None) -> str:
    """About how many more seeds would decide, if mean and spread stayed as they are, and how long these take."""
    if more is None:
        return "no estimate of how many seeds would decide"
    took = "" if minutes is None else f", which take {minutes:.1f} minutes on one worker"
    return f"about {more} more {'seed' if more == 1 else 'seeds'} would decide{took}"


def p_text(p: float) -> str:
    """`p = 0.031`, or that it is below 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def points(difference: Interval) -> str:
    """`+2.1 points (0.9 to 3.4)`; the difference alone where it has no interval."""
    mean = f"{'+' if difference.mean > 0 else ''}{_points(difference.mean)} points"
    if math.isnan(difference.low):
        return mean
    if math.isinf(difference.low):
        return f"{mean} (no interval before six seeds)"
    return f"{mean} ({_points(difference.low)} to {_points(difference.high)})"


def counted(number: int, what: str) -> str:
    """`six seeds`, `13 seeds`."""
    words = _NUMBERS[number] if number < len(_NUMBERS) else str(number)
    return f"{words} {what}{'' if number == 1 else 's'}"


def leading_text(group: Sequence[str], methods: int) -> str:
    """Which methods lead, of how many."""
    if len(group) == methods:
        return f"no method leads: none of the {counted(methods, 'method')} is shown to be better than another"
    if len(group) == 1:
        return f"{group[0]} leads"
    return f"{', '.join(group[:-1])} and {group[-1]} lead: no method is shown to be better than any of them"


def equal_labels_text(method: str, own: str, other: str, found: EqualLabels, unit: str) -> str:
    """Such as "gta with 15 % of the labels is as good as finetune with 27 % (22 to 33)".

    Args:
        method: its name.
        own: how many labels it has, in words.
        other: name of the reference.
        found: how many the reference needs.
        unit: of that number, e.g. " %" or " labels a class".
    """
    amount = found.amount
    labels = f"{amount.mean:.3g}"
    if math.isinf(amount.mean):
        labels = f"more than {found.most:.3g}" if amount.mean > 0 else f"fewer than {found.fewest:.3g}"
    return f"{method} with {own} is as good as {other} with {labels}{unit} ({_bounds(amount, found)})"


def _bounds(amount: Interval, found: EqualLabels) -> str:
    if math.isnan(amount.low):
        return "one seed, no interval"
    low, high = math.isinf(amount.low), math.isinf(amount.high)
    if low and high:
        return f"undecided between {found.fewest:.3g} and {found.most:.3g}"
    if low:
        return f"at most {amount.high:.3g}"
    return f"at least {amount.low:.3g}" if high else f"{amount.low:.3g} to {amount.high:.3g}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", "−")
