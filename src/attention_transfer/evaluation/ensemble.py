"""The verb `ensemble`: several finished runs as one classifier, and how differently they err."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy import optimize, stats
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config.choices import Mean, Weighting
from attention_transfer.config.verbs import MakeEnsemble
from attention_transfer.data import Split, eval_transform, load_data
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation.network import LoadedRun, Network, load_run
from attention_transfer.folders import MODEL_FILES
from attention_transfer.places import expanded, file_problems
from attention_transfer.training import RunFolder
from attention_transfer.ui import console
from attention_transfer.vit import ViTSpec, describe
from attention_transfer.writing import whole_file

_BATCH = 256
_LEAST = 1e-9  # of a fitted weight: at 0, the slope is infinite where all other members rule the right class out


class Ensemble(nn.Module):
    """Several networks as one classifier.

    With `mean="probabilities"` the class probabilities are Σ_k w_k p_k; with `mean="logits"` they are
    softmax(Σ_k w_k z_k), which is the geometric mean of the p_k, brought to sum to one.

    The members must take the same images: of one size, with the same channels and normalisation. This is checked of
    vision transformers that [`describe`][attention_transfer.vit.describe.describe] knows, and of the networks of
    [`load_run`][attention_transfer.load_run]; any other module may be a member too, and is trusted.
    Members stay in the mode (training or eval) they are in.

    Args:
        networks: modules that give logits, (B, classes), of images (B, channels, height, width); at least two.
        weights: how much each counts, in [0, 1], K numbers that sum to one; default equal.
        mean: what is averaged.

    Raises:
        UserError: the members take different images or have different numbers of classes, or the weights are wrong;
            every reason is listed.

    Example:
        ```python
        result = ensemble(["runs/a", "runs/b"], weights="validation")
        networks = [load_run(member.run).network for member in result.members]
        both = Ensemble(networks, weights=result.weights, mean=result.mean)
        ```
    """

    weights: Tensor

    def __init__(
        self, networks: Sequence[nn.Module], *, weights: Sequence[float] | None = None, mean: Mean = "probabilities"
    ) -> None:
        super().__init__()
        problems = _choice("mean", mean, get_args(Mean)) + _unfit(networks)
        raise_all(problems + ([] if weights is None else _weight_problems(weights, len(networks))))
        self.networks = nn.ModuleList(networks)
        self.mean: Mean = mean
        self.register_buffer("weights", torch.tensor(weights or [1 / len(networks)] * len(networks)))

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities, (B, classes), float32 at least, of normalised images (B, channels, height, width)."""
        logits_KBC = torch.stack([network(images) for network in self.networks])
        precise = logits_KBC.to(torch.promote_types(logits_KBC.dtype, torch.float32))
        return _combined(precise, self.weights.to(precise.dtype), self.mean)


@dataclass(frozen=True)
class Score:
    """How good predictions are on the test split.

    Attributes:
        accuracy: share in [0, 1].
        low: lower bound of its 95 % interval (Wilson).
        high: upper bound of the same.
        cross_entropy: with the labels, in nats.
    """

    accuracy: float
    low: float
    high: float
    cross_entropy: float


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
    problems = config.problems() + _out_problems(config.out, runs, overwrite=config.overwrite) + _run_problems(runs)
    loaded = _loaded(runs, problems)
    data = str(RunFolder(loaded[0].path).config()["data"])
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
        with whole_file(expanded(config.out)) as file:
            file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def _combined(logits_KBC: Tensor, weights_K: Tensor, mean: Mean) -> Tensor:
    """Log-probabilities, (B, classes), of the weighted mean of K members."""
    if mean == "probabilities":
        return (F.log_softmax(logits_KBC, dim=-1) + weights_K.log()[:, None, None]).logsumexp(dim=0)
    return F.log_softmax((logits_KBC * weights_K[:, None, None]).sum(dim=0), dim=-1)


def fitted_weights(logits_KBC: Tensor, labels_B: Tensor, mean: Mean) -> Tensor:
    """The convex weights that minimise the cross-entropy, which is convex in them; float64, (K,).

    Args:
        logits_KBC: of K members, (K, B, classes), float64; they may be log-probabilities.
        labels_B: classes, (B,).
        mean: what is averaged.

    Raises:
        UserError: the search came to no end.
    """
    members = len(logits_KBC)

    def loss_and_slope(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights_K = torch.from_numpy(values.copy()).requires_grad_()
        loss = F.nll_loss(_combined(logits_KBC, weights_K, mean), labels_B)
        (slope_K,) = torch.autograd.grad(loss, weights_K)
        return loss.item(), slope_K.numpy()

    found = optimize.minimize(
        loss_and_slope,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(_LEAST, 1.0)] * members,
        constraints=optimize.LinearConstraint(np.ones((1, members)), 1, 1),
        options={"ftol": 1e-10, "maxiter": 1000},
    )
    if not found.success:
        raise UserError(f"no weights were found on the validation split ({found.message}); take equal ones")
    return torch.from_numpy(found.x / found.x.sum())


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
        test=score(_combined(test_KBC, weights_K, mean), labels_B),
        test_images=len(labels_B),
        validation_cross_entropy=F.nll_loss(_combined(validation[0], weights_K, mean), validation[1]).item(),
        oracle_accuracy=float(right_KB.any(axis=0).mean()),
        pairs=tuple(
            Pair((runs[i], runs[j]), *likeness(answers_KB[i], answers_KB[j], labels_B))
            for i, j in combinations(range(len(runs)), 2)
        ),
    )


def score(log_probabilities_BC: Tensor, labels_B: NDArray[np.int64]) -> Score:
    """Accuracy with its 95 % interval (Wilson), and cross-entropy in nats.

    Args:
        log_probabilities_BC: (B, classes).
        labels_B: classes, (B,).
    """
    right = int((log_probabilities_BC.argmax(dim=-1).numpy() == labels_B).sum())
    interval = stats.binomtest(right, len(labels_B)).proportion_ci(confidence_level=0.95, method="wilson")
    cross_entropy = F.nll_loss(log_probabilities_BC, torch.from_numpy(labels_B)).item()
    return Score(right / len(labels_B), float(interval.low), float(interval.high), cross_entropy)


def likeness(
    one_B: NDArray[np.int64], other_B: NDArray[np.int64], labels_B: NDArray[np.int64]
) -> tuple[float, float | None]:
    """Agreement and error overlap, as in `Pair`, of two members' predicted classes, (B,), with the labels, (B,)."""
    wrong, also = one_B != labels_B, other_B != labels_B
    either = int((wrong | also).sum())
    return float((one_B == other_B).mean()), int((wrong & also).sum()) / either if either else None


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
    data = {run: RunFolder(member.path).config()["data"] for run, member in loaded.items()}
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


def _out_problems(out: str | None, runs: Sequence[str], *, overwrite: bool) -> list[str]:
    if out is None:
        return []
    target = expanded(out)
    if target.suffix != ".json":
        return [f"{out} does not end in .json; name such a file"]
    return file_problems(target, overwrite=overwrite, models=runs, names=MODEL_FILES)


def _choice(what: str, value: str, options: Sequence[str]) -> list[str]:
    return [] if value in options else [f"{what} is {value!r}; {nearest(value, options)}"]


def _unfit(networks: Sequence[nn.Module]) -> list[str]:
    """Why networks can't be given the same images, or their predictions not be averaged."""
    if len(networks) < 2:
        return [f"an ensemble needs at least two networks, not {len(networks)}; give more"]
    known = [(number, spec) for number, spec in enumerate(map(_spec, networks)) if spec is not None]
    return [
        f"{name} is {getattr(known[0][1], name)} of network {known[0][0]} and {getattr(spec, name)} of network "
        f"{number}; an Ensemble gives all its members the same images, and needs the same classes"
        for number, spec in known[1:]
        for name in ("image_size", "channels", "mean", "std", "classes")
        if getattr(spec, name) != getattr(known[0][1], name)
    ]


def _spec(network: nn.Module) -> ViTSpec | None:
    try:
        return describe(network.student if isinstance(network, Network) else network)
    except UserError:  # no vision transformer: it may be a member all the same, and nothing says what it takes
        return None


def _weight_problems(weights: Sequence[float], members: int) -> list[str]:
    if len(weights) != members:
        return [f"there are {len(weights)} weights for {members} networks; give one for each"]
    if all(0 <= weight <= 1 for weight in weights) and math.isclose(sum(weights), 1, abs_tol=1e-6):
        return []
    return [f"weights are {list(weights)}; give numbers from 0 to 1 that sum to one"]


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
