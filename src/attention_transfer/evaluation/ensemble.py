"""The verb `ensemble`: several finished runs as one classifier, and how differently they err."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.choices import Mean, Weighting
from attention_transfer.config.ensemble import MakeEnsemble
from attention_transfer.data import Split, eval_transform, load_data
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.averaging import (
    Score,
    combined,
    fitted_weights,
    likeness,
    score,
)
from attention_transfer.evaluation.classifier import LoadedRun, load_run
from attention_transfer.places import expanded, out_problems
from attention_transfer.training import RunFolder
from attention_transfer.ui import console
from attention_transfer.writing import write_whole

_BATCH = 256


@dataclass(frozen=True)
class Member:
    """One run of an ensemble.

    Attributes:
        run: its folder, as it was given.
        weight: how much it counts, in [0, 1]; the weights of all members sum to one.
        test: how good it is alone.
    """

    run: str
    weight: float
    test: Score


@dataclass(frozen=True)
class Pair:
    """How alike two members predict on the test split.

    Attributes:
        runs: the two folders.
        agreement: share of the images that both put in the same class, in [0, 1].
        error_overlap: images that both get wrong over images that at least one gets wrong, in [0, 1]; `None` where
            neither gets any wrong.
    """

    runs: tuple[str, str]
    agreement: float
    error_overlap: float | None


@dataclass(frozen=True)
class EnsembleResult:
    """What an ensemble is made of, and how good it is.

    Attributes:
        data: the data set.
        mean: what was averaged, "probabilities" or "logits".
        weighting: where the weights come from, "equal" or "validation".
        members: the runs, in the order given.
        test: how good the ensemble is on the test split.
        test_images: size of that split.
        validation_cross_entropy: the ensemble's on the validation split, in nats; what to choose by.
        oracle_accuracy: share of the test images that at least one member gets right, in [0, 1].
        pairs: every two members, in order.
    """

    data: str
    mean: Mean
    weighting: Weighting
    members: tuple[Member, ...]
    test: Score
    test_images: int
    validation_cross_entropy: float
    oracle_accuracy: float
    pairs: tuple[Pair, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each member, in order."""
        return tuple(member.weight for member in self.members)


def average_runs(config: MakeEnsemble) -> EnsembleResult:
    """The verb `ensemble`."""
    runs, mean, weighting = config.runs, config.mean, config.weights or "equal"
    problems = config.problems()
    problems += out_problems(config.out, ".json", overwrite=config.overwrite, models=runs, names=MODEL_FILES)
    problems += _run_problems(runs)
    loaded = _loaded(runs, problems)
    data = RunFolder(loaded[0].path).config().data
    splits = load_data(data)
    if loaded[0].classes != splits.classes:
        raise UserError(f"the runs have other classes than the data set {data!r}; choose runs that were trained on it")
    validation_KBC = _log_probabilities(runs, loaded, splits.validation)
    labels = torch.from_numpy(splits.validation.labels)
    weights_K = torch.full((len(runs),), 1 / len(runs), dtype=torch.float64)
    if weighting == "validation":
        weights_K = fitted_weights(validation_KBC, labels, mean)
    test_KBC = _log_probabilities(runs, loaded, splits.test)
    result = _result(runs, data, mean, weighting, weights_K, (validation_KBC, labels), (test_KBC, splits.test.labels))
    _show(result)
    if config.out is not None:
        write_whole(expanded(config.out), json.dumps(asdict(result), indent=2) + "\n")
    return result


def _log_probabilities(runs: Sequence[str], loaded: Sequence[LoadedRun], split: Split) -> Tensor:
    """Log-probabilities of each member, float64, (K, images, classes)."""
    found = []
    for run, member in zip(runs, loaded, strict=True):
        images = split.with_transform(eval_transform(member.spec)).materialised().tensors[0]
        with torch.no_grad():
            logits = torch.cat([member.network(batch) for batch in images.split(_BATCH)])
        if not logits.isfinite().all():
            raise UserError(f"{run} gives logits that are not finite; leave it out")
        found.append(logits.double().log_softmax(dim=-1))
    return torch.stack(found)


def _result(
    runs: Sequence[str],
    data: str,
    mean: Mean,
    weighting: Weighting,
    weights_K: Tensor,
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, NDArray[np.int64]],
) -> EnsembleResult:
    test_KBC, labels_B = test
    answers_KB = test_KBC.argmax(dim=-1).numpy()
    right_KB = answers_KB == labels_B
    members = zip(runs, weights_K.tolist(), test_KBC, strict=True)
    return EnsembleResult(
        data=data,
        mean=mean,
        weighting=weighting,
        members=tuple(Member(run, weight, score(alone_BC, labels_B)) for run, weight, alone_BC in members),
        test=score(combined(test_KBC, weights_K, mean), labels_B),
        test_images=len(labels_B),
        validation_cross_entropy=F.nll_loss(combined(validation[0], weights_K, mean), validation[1]).item(),
        oracle_accuracy=float(right_KB.any(axis=0).mean()),
        pairs=tuple(
            Pair((runs[i], runs[j]), *likeness(answers_KB[i], answers_KB[j], labels_B))
            for i, j in combinations(range(len(runs)), 2)
        ),
    )


def _loaded(runs: Sequence[str], problems: Sequence[str]) -> list[LoadedRun]:
    """The runs, or every mistake: those that were found before, and those of the runs."""
    found, mistakes = {}, list(problems)
    for run in dict.fromkeys(runs):
        try:
            member = load_run(run)
        except UserError as error:
            mistakes.append(str(error))
            continue
        if RunFolder(member.path).has("config.yaml"):
            found[run] = member
        else:
            mistakes.append(f"{run} is an exported model, which has no data set; name the run that it comes from")
    raise_all(mistakes + _mismatches(found))
    return [found[run] for run in runs]


def _mismatches(loaded: dict[str, LoadedRun]) -> list[str]:
    """What sets runs apart from the first."""
    names, problems = list(loaded), []
    data = {run: RunFolder(member.path).config().data for run, member in loaded.items()}
    for run in names[1:]:
        if data[run] != data[names[0]]:
            problems.append(
                f"{run} has the data set {data[run]!r}, but {names[0]} has {data[names[0]]!r}; choose runs of one"
            )
        if loaded[run].classes != loaded[names[0]].classes:
            problems.append(f"{run} has other classes than {names[0]}; choose runs with the same classes")
    return problems


def _run_problems(runs: Sequence[str]) -> list[str]:
    problems = []
    if len(runs) < 2:
        problems.append(f"an ensemble needs at least two runs, not {len(runs)}; name more")
    places = [Path(run).resolve() for run in runs]
    twice = [run for i, run in enumerate(runs) if places[i] in places[:i]]
    return problems + [f"{run} is named twice; name each run once" for run in dict.fromkeys(twice)]


def _show(result: EnsembleResult) -> None:
    names = [Path(member.run).resolve().name for member in result.members]
    if len(set(names)) < len(names):
        names = [member.run for member in result.members]
    console.print(_scores(result, names), _likenesses(result))
    console.print(
        f"at least one member is right on {100 * result.oracle_accuracy:.1f} %\n"
        f"cross-entropy of the ensemble on validation: {result.validation_cross_entropy:.3f} nats",
        highlight=False,
    )


def _scores(result: EnsembleResult, names: Sequence[str]) -> Table:
    """A row for each member and one for the ensemble; at most 79 columns wide, whatever the names."""
    table = Table(title=f"{result.test_images} test images of {result.data}", title_justify="left")
    table.add_column("")
    table.add_column("run", width=26, overflow="fold")
    for heading in ("weight", "accuracy, %\n(95 %)", "cross-\nentropy"):
        table.add_column(heading, justify="right")
    for number, (name, member) in enumerate(zip(names, result.members, strict=True), start=1):
        table.add_row(str(number), name, f"{member.weight:.3f}", *_cells(member.test))
    table.add_section()
    table.add_row("", f"mean of {result.mean}", "", *_cells(result.test), style="bold")
    return table


def _cells(test: Score) -> tuple[str, str]:
    accuracy, low, high = (f"{100 * share:.1f}" for share in (test.accuracy, test.low, test.high))
    return f"{accuracy} ({low} to {high})", f"{test.cross_entropy:.3f}"


def _likenesses(result: EnsembleResult) -> Table:
    """A row for each pair, by the members' numbers."""
    table = Table("runs")
    for heading in ("predict the same, %", "both wrong, % of either wrong"):
        table.add_column(heading, justify="right")
    for (one, other), pair in zip(combinations(range(1, len(result.members) + 1), 2), result.pairs, strict=True):
        overlap = "–" if pair.error_overlap is None else f"{100 * pair.error_overlap:.1f}"
        table.add_row(f"{one} and {other}", f"{100 * pair.agreement:.1f}", overlap)
    return table
