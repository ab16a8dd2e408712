"""What a comparison found, in words and numbers: who leads, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attention_transfer.experiments.rows import Amount, Row, amount_of, by_labels, runs_of
from attention_transfer.experiments.statistics import (
    Difference,
    Interval,
    Sequential,
    against,
    equal_labels,
    equal_labels_text,
    leading,
    leading_text,
    mean_interval,
    more_text,
    sentence,
)

Decisions = Mapping[str, Mapping[str, Sequential]]
"""By the amount of labels, in words, and by the method."""


@dataclass(frozen=True)
class Decided:
    """What is known of methods whose seeds were added until it was sure.

    Attributes:
        reference: what the others are compared with.
        max_seeds: the budget that the looks were planned for.
        decisions: the comparisons.
    """

    reference: str
    max_seeds: int
    decisions: Decisions

    @property
    def basis(self) -> str:
        """What the verdicts rest on, in words."""
        return (
            f"Seeds were added until it was sure, up to {self.max_seeds} of each method. Each difference from "
            f"{self.reference} was looked at after every seed from the sixth on. Its interval is always valid: for one "
            "amount of labels, all looks together are wrong in at most 5 % of experiments. The verdicts are those of "
            "these intervals; intervals of accuracies, gaps and equal labels suppose a fixed number of seeds, and "
            "decide nothing."
        )


@dataclass(frozen=True)
class Finding:
    """The methods of one amount of labels, compared.

    Attributes:
        labels: the amount, in words.
        rows: the runs.
        reference: what the others are compared with: finetune, or else the first method; the first one where seeds
            were added until it was sure.
        differences: of each other method that shares a seed with it; sequential where seeds were added until it was
            sure.
        group: the leading group; all methods where none is shown to be worse than another.
        methods: how many there are.
    """

    labels: str
    rows: tuple[Row, ...]
    reference: str
    differences: Mapping[str, Difference] | Mapping[str, Sequential]
    group: list[str]
    methods: int

    @property
    def leaders(self) -> list[str]:
        """The leading group, if it leaves anyone out."""
        return self.group if len(self.group) < self.methods else []

    @property
    def headline(self) -> str:
        """Who leads, in a sentence; and what is undecided, where seeds were added until it was sure."""
        undecided = [
            f"{name} ({more_text(found.more, self.minutes(name))})"
            for name, found in self.differences.items()
            if isinstance(found, Sequential) and found.verdict == "undecided"
        ]
        leads = leading_text(self.group, self.methods)
        return f"{leads}; undecided: {', '.join(undecided)}" if undecided else leads

    @property
    def sentences(self) -> list[str]:
        """Who leads, and how each method compares with the reference; none where there is one method."""
        if self.methods < 2:
            return []
        return [
            self.headline,
            *(sentence(name, self.reference, found, self.minutes(name)) for name, found in self.differences.items()),
        ]

    def minutes(self, name: str) -> float | None:
        """How long the further seeds take on one worker that would decide a method.

        `None` where it is decided, where nobody knows how many they are, and where the number of seeds was fixed.
        """
        found = self.differences[name]
        if not isinstance(found, Sequential) or found.more is None:
            return None
        pair = [row.seconds for row in self.rows if row.preset in (name, self.reference)]
        return 2 * sum(pair) / len(pair) * found.more / 60


def findings(rows: Sequence[Row], margin: float | None = None, decided: Decided | None = None) -> list[Finding]:
    """Compare the methods for each amount of labels: the one source of what page, tables and log say.

    Args:
        rows: the finished runs.
        margin: differences up to this size count as none.
        decided: what is known where seeds were added until it was sure; `None` where their number was fixed.

    Raises:
        UserError: a seed is there twice, or the margin is not above 0.
    """
    return [_finding(title, group, margin, decided) for title, group in by_labels(rows).items()]


def _finding(title: str, rows: Sequence[Row], margin: float | None, decided: Decided | None) -> Finding:
    runs = runs_of(rows)
    found: Mapping[str, Difference] | Mapping[str, Sequential]
    if decided is None:
        reference = _reference(list(runs))
        others = {name: own for name, own in runs.items() if name != reference and own.keys() & runs[reference].keys()}
        found, group = against(runs[reference], others, margin), leading(runs)
    else:  # who looks after every seed may not ask which leads by tests that are made for one look
        reference, found = decided.reference, decided.decisions.get(title, {})
        group = sorted(runs, key=lambda name: -mean_interval([*runs[name].values()]).mean)
    behind = {name for name, difference in found.items() if difference.verdict == "worse"}
    if any(difference.verdict == "better" for difference in found.values()):
        behind.add(reference)
    group = [name for name in group if name not in behind]  # the sentences must not say otherwise
    return Finding(title, tuple(rows), reference, found, group, len(runs))


def _reference(methods: Sequence[str]) -> str:
    return "finetune" if "finetune" in methods else methods[0]


def label_curves(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[float, dict[int, float]]]]:
    """Accuracy over labels, where there are several amounts in one unit.

    Returns:
        By unit and what else is varied: for each method, by the number of labels, the test accuracy by seed.
    """
    curves: dict[tuple[str, str], dict[str, dict[float, dict[int, float]]]] = {}
    for title, group in by_labels(rows).items():
        amount = amount_of(title)
        others = ", ".join(f"{name} {value}" for name, value in amount.settings.items())
        for name, runs in runs_of(group).items():
            curves.setdefault((amount.unit, others), {}).setdefault(name, {})[amount.number] = runs
    return {key: methods for key, methods in curves.items() if any(len(curve) > 1 for curve in methods.values())}


def label_sentences(rows: Sequence[Row]) -> list[str]:
    """With how many labels the reference is as good as each other method with its own."""
    found = []
    for (unit, others), methods in label_curves(rows).items():
        reference = _reference(list(methods))
        curve = methods[reference]
        for name, own in methods.items():
            for number, runs in own.items():
                if name == reference or len(curve) < 2 or not set(runs).intersection(*curve.values()):
                    continue
                words = f"{number:g}{unit}" + (f" ({others})" if others else "")
                found.append(equal_labels_text(name, words, reference, equal_labels(runs, curve), unit))
    return found


@dataclass(frozen=True)
class SettingCurve:
    """Accuracy over a setting that was varied, for one amount of labels.

    Attributes:
        setting: its name.
        labels: the amount, and what else is varied, in words.
        methods: for each method, by rising value, the test accuracy over seeds.
    """

    setting: str
    labels: str
    methods: dict[str, list[tuple[float, Interval]]]


def setting_curves(rows: Sequence[Row]) -> list[SettingCurve]:
    """Accuracy over each setting that takes three or more numbers, e.g. the weight of a rule."""
    groups = [(amount_of(title), runs_of(group)) for title, group in by_labels(rows).items()]
    curves: dict[tuple[str, str], dict[str, dict[float, Interval]]] = {}
    for amount, runs in groups:
        for setting, value in amount.settings.items():
            if (number := _number(value)) is not None:
                for name, own in runs.items():
                    by_method = curves.setdefault((setting, _but(amount, setting)), {})
                    by_method.setdefault(name, {})[number] = mean_interval([*own.values()])
    return [
        SettingCurve(setting, labels, {name: sorted(curve.items()) for name, curve in methods.items()})
        for (setting, labels), methods in curves.items()
        if max(map(len, methods.values())) > 2
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _but(amount: Amount, setting: str) -> str:
    rest = [f"{name} {value}" for name, value in amount.settings.items() if name != setting]
    return ", ".join([f"{amount.number:g}{amount.unit}", *rest])
