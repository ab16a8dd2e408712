"""The verb `ensemble`, and the module of that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import optimize
from torch import Tensor, nn

from attention_transfer import Ensemble, UserError, cli, ensemble, load_run, pretrain, train
from attention_transfer.config.choices import Mean
from attention_transfer.data import DATA, ArrayImages, Split, digits, eval_transform
from attention_transfer.evaluation.averaging import fitted_weights, likeness, score
from attention_transfer.training import Recipe

Build = Callable[..., Any]
Spoil = Callable[[str, str], str]
RECIPE = Recipe(epochs=15, batch_size=16, validate_every=5, lr=5e-3, ema_decay=None)


@pytest.fixture(scope="module")
def runs(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A copied student, a fine-tuned one of another seed, and one that takes larger images."""
    folder = tmp_path_factory.mktemp("runs")
    shared: dict[str, Any] = {"teacher": teacher, "shots": 8, "recipe": RECIPE}
    return [
        str(train("copy", out=str(folder / "copy"), **shared).path),
        str(train("finetune", seed=1, out=str(folder / "finetune"), **shared).path),
        str(train("scratch", image_size=16, out=str(folder / "larger"), **shared).path),
    ]


@pytest.fixture
def spoilt(tmp_path: Path) -> Spoil:
    """Copies a run under another name, and spoils it in one way."""

    def copy(run: str, how: str) -> str:
        folder = tmp_path / how
        shutil.copytree(run, folder)
        model = folder / "model"
        if how == "unfinished":
            (folder / "summary.json").unlink()
        if how == "other-data":
            config = (folder / "config.yaml").read_text()
            (folder / "config.yaml").write_text(config.replace("data: digits", "data: letters"))
        if how.startswith("other-classes"):
            config = json.loads((model / "config.json").read_text())
            config["pretrained_cfg"]["label_names"] = list("abcdefghij")
            (model / "config.json").write_text(json.dumps(config))
        if how == "diverged":
            weights = {name: value * float("nan") for name, value in load_file(model / "model.safetensors").items()}
            save_file(weights, model / "model.safetensors")
        return str(folder)

    return copy


class Fixed(nn.Module):
    """Gives the same probabilities for every image."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log() + 5.0)  # a shift that no softmax may see

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def log_probabilities(run: str, split: Split) -> NDArray[np.float64]:
    """By a route of its own: numpy's softmax of all images at once."""
    loaded = load_run(run)
    with torch.no_grad():
        logits = loaded.network(split.with_transform(eval_transform(loaded.spec)).materialised().tensors[0])
    z = logits.double().numpy()
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


# Numbers


@pytest.mark.parametrize(
    ("mean", "weights", "expected"),
    [
        ("probabilities", None, (0.7, 0.3)),  # halfway between 0.9 and 0.5
        ("probabilities", (0.25, 0.75), (0.6, 0.4)),
        ("logits", None, (0.75, 0.25)),  # √(0.9·0.5) to √(0.1·0.5) is 3 to 1
        ("logits", (1.0, 0.0), (0.9, 0.1)),
        ("probabilities", (0.0, 1.0), (0.5, 0.5)),
    ],
)
def test_the_module_gives_the_weighted_mean(
    mean: Mean, weights: tuple[float, float] | None, expected: tuple[float, float], images: Tensor
) -> None:
    both = Ensemble([Fixed(0.9, 0.1), Fixed(0.5, 0.5)], mean=mean, weights=weights)
    output = both(images)
    torch.testing.assert_close(output.exp(), torch.tensor([expected] * 4))
    output[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in both.parameters())


def test_the_module_is_precise_in_half_precision_and_moves_its_weights_along(images: Tensor) -> None:
    both = Ensemble([Fixed(0.9, 0.1), Fixed(0.5, 0.5)], weights=(0.25, 0.75)).to(torch.bfloat16)
    assert both(images).dtype == torch.float32
    assert both.double()(images).dtype == torch.float64
    other = Ensemble([Fixed(0.5, 0.5), Fixed(0.5, 0.5)])
    other.load_state_dict(both.state_dict())
    torch.testing.assert_close(other(images).exp(), torch.tensor([[0.6, 0.4]] * 4), atol=0.01, rtol=0)


def test_a_score_has_the_interval_of_wilson() -> None:
    labels = np.arange(10) % 2
    answers = np.where(np.arange(10) < 8, labels, 1 - labels)  # 8 of 10
    given = torch.full((10, 2), 0.2, dtype=torch.float64)
    given[torch.arange(10), torch.from_numpy(answers)] = 0.8
    found = score(given.log(), labels)
    assert (found.accuracy, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert found.cross_entropy == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))


def test_likeness_counts_shared_answers_and_shared_errors() -> None:
    labels = np.array([0, 1, 2, 3])
    agreement, overlap = likeness(np.array([0, 1, 0, 0]), np.array([0, 0, 0, 3]), labels)
    assert agreement == 0.5  # the first and the third image
    assert overlap == pytest.approx(1 / 3)  # the third, of the last three
    assert likeness(labels, labels, labels) == (1.0, None)


# Weights


def test_fitted_weights_are_those_worked_by_hand() -> None:
    # The right class has 0.8 and 0.2 by one member, 0.2 and 0.6 by the other: 0.6/(0.2+0.6w) = 0.4/(0.6-0.4w).
    first, other = [[0.8, 0.2], [0.8, 0.2]], [[0.2, 0.8], [0.4, 0.6]]
    given = torch.tensor([first, other], dtype=torch.float64).log()
    weights = fitted_weights(given, torch.tensor([0, 1]), "probabilities")
    torch.testing.assert_close(weights, torch.tensor([7 / 12, 5 / 12], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_weights_have_a_lower_cross_entropy(mean: Mean, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(4, size=60)
    skill = random.uniform(0, 4, size=(3, 1, 1))
    z = random.normal(size=(3, 60, 4)) * random.uniform(0.5, 3, size=(3, 1, 1)) + skill * np.eye(4)[labels]
    z -= np.log(np.exp(z).sum(axis=2, keepdims=True))

    def cross_entropy(weights: NDArray[np.float64]) -> float:
        mixed = np.tensordot(weights, np.exp(z) if mean == "probabilities" else z, axes=1)
        mixed = mixed if mean == "probabilities" else np.exp(mixed)
        return float(-np.log(mixed[range(60), labels] / mixed.sum(axis=1)).mean())

    fitted = fitted_weights(torch.from_numpy(z), torch.from_numpy(labels), mean).numpy()
    assert fitted.sum() == pytest.approx(1)
    others = [*random.dirichlet([0.3] * 3, size=500), *np.eye(3), np.full(3, 1 / 3)]
    others += [0.99 * fitted + 0.01 * corner for corner in np.eye(3)]
    assert cross_entropy(fitted) <= min(map(cross_entropy, others)) + 1e-7


def test_a_useless_member_gets_no_weight_and_equal_members_equal_ones() -> None:
    labels = torch.arange(12) % 3
    good = (3.0 * torch.eye(3, dtype=torch.float64)[labels]).log_softmax(dim=-1)
    bad = (-500.0 * torch.eye(3, dtype=torch.float64)[labels]).log_softmax(dim=-1)  # its probabilities underflow
    for mean in ("probabilities", "logits"):
        assert float(fitted_weights(torch.stack([good, bad]), labels, mean)[1]) < 1e-5
        same = fitted_weights(torch.stack([good, good, good]), labels, mean)
        torch.testing.assert_close(same, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_a_search_that_fails_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(success=False, message="no way down")
    monkeypatch.setattr(optimize, "minimize", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"\(no way down\); use equal weights"):
        fitted_weights(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long), "logits")


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_fitted_weights_are_at_least_as_good_as_equal_ones_on_validation(runs: list[str], mean: Mean) -> None:
    fitted = ensemble(runs, mean=mean, weights="validation")
    equal = ensemble(runs, mean=mean)
    assert equal.weights == pytest.approx([1 / 3] * 3)
    assert sum(fitted.weights) == pytest.approx(1)
    assert fitted.weights != pytest.approx(equal.weights, abs=0.01)
    assert fitted.validation_cross_entropy < equal.validation_cross_entropy
    assert fitted == ensemble(runs, mean=mean, weights="validation")
    assert fitted.pairs == equal.pairs


def test_weights_know_nothing_of_the_test_split(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = ensemble(runs, weights="validation")
    splits = digits()
    inverted = np.stack([255 - np.asarray(splits.test.images[i]) for i in range(len(splits.test))])
    test = Split(ArrayImages(inverted), (splits.test.labels + 3) % 10)
    monkeypatch.setitem(DATA, "digits", lambda: replace(splits, test=test))
    after = ensemble(runs, weights="validation")
    assert after.weights == before.weights
    assert after.validation_cross_entropy == before.validation_cross_entropy
    assert after.test != before.test


# Runs


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_the_result_is_what_numpy_finds(runs: list[str], mean: Mean) -> None:
    result = ensemble(runs, mean=mean)
    splits = digits()
    labels = splits.test.labels
    alone = np.stack([log_probabilities(run, splits.test) for run in runs])
    mixed = np.exp(alone).mean(axis=0) if mean == "probabilities" else np.exp(alone.mean(axis=0))
    mixed /= mixed.sum(axis=1, keepdims=True)
    assert result.test.accuracy == (mixed.argmax(axis=1) == labels).mean()
    assert result.test.cross_entropy == pytest.approx(-np.log(mixed[range(450), labels]).mean(), abs=1e-5)
    assert result.test.low < result.test.accuracy < result.test.high
    wrong = alone.argmax(axis=2) != labels
    assert result.oracle_accuracy == pytest.approx((~wrong).any(axis=0).mean())
    assert [pair.runs for pair in result.pairs] == [(runs[0], runs[1]), (runs[0], runs[2]), (runs[1], runs[2])]
    assert result.pairs[1].error_overlap == (wrong[0] & wrong[2]).sum() / (wrong[0] | wrong[2]).sum()
    assert result.pairs[1].agreement == (alone[0].argmax(axis=1) == alone[2].argmax(axis=1)).mean()


def test_members_score_as_their_runs_say_whether_copied_or_of_another_size(runs: list[str]) -> None:
    for run, member in zip(runs, ensemble(runs).members, strict=True):
        told = load_run(run).summary["test"]
        assert member.run == run
        assert member.test.accuracy == pytest.approx(told["accuracy"], abs=1e-6)
        assert member.test.cross_entropy == pytest.approx(told["cross_entropy"], abs=1e-5)


def test_the_module_of_loaded_runs_gives_the_result_of_the_verb(runs: list[str]) -> None:
    result = ensemble(runs[:2], weights="validation")
    loaded = [load_run(run) for run in runs[:2]]
    both = Ensemble([run.network for run in loaded], weights=result.weights, mean=result.mean)
    test = digits().test.with_transform(eval_transform(loaded[0].spec)).materialised()
    with torch.no_grad():
        found = score(both(test.tensors[0]).double(), digits().test.labels)
    assert found.accuracy == result.test.accuracy
    assert found.cross_entropy == pytest.approx(result.test.cross_entropy, abs=1e-5)


def test_tables_are_narrow_and_the_result_is_written(
    runs: list[str], spoilt: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ensemble.json"
    members = [*runs[:2], spoilt(runs[0], "a-name-that-is-" + "much-" * 12 + "too-long")]
    cli.run(["ensemble", *members, "--mean", "logits", "--weights", "validation", "--out", str(out)])
    lines = capsys.readouterr().err.splitlines()
    assert any("450 test images of digits" in line for line in lines)
    assert max(map(len, lines)) < 80
    content = json.loads(out.read_text())
    assert (content["mean"], content["weighting"], content["test_images"]) == ("logits", "validation", 450)
    assert [member["run"] for member in content["members"]] == members
    assert content["pairs"][1] == {"runs": [members[0], members[2]], "agreement": 1.0, "error_overlap": 1.0}
    assert set(content["test"]) == {"accuracy", "low", "high", "cross_entropy"}
    cli.run(["ensemble", *runs[:2], "--out", str(out), "--overwrite"])
    assert json.loads(out.read_text())["weighting"] == "equal"


# Wrong input


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("unfinished", "holds no finished run"),
        ("other-data", "has the data set 'letters', but .* has 'digits'"),
        ("other-classes", "has other classes than"),
        ("diverged", "hold NaN or infinity"),
    ],
)
def test_a_run_that_does_not_belong_is_named(runs: list[str], spoilt: Spoil, how: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        ensemble([runs[0], spoilt(runs[1], how)])
    assert how in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_whose_classes_are_not_those_of_the_data_are_refused(runs: list[str], spoilt: Spoil) -> None:
    with pytest.raises(UserError, match="have other classes than the data set 'digits'"):
        ensemble([spoilt(runs[0], "other-classes"), spoilt(runs[1], "other-classes-too")])


def test_a_teacher_is_no_member(runs: list[str], tmp_path: Path) -> None:
    made = pretrain(epochs=1, out=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="a pre-trained teacher, not a classifier"):
        ensemble([runs[0], str(made.path)])


def test_one_run_or_the_same_twice_is_no_ensemble(runs: list[str]) -> None:
    for few in ([], runs[:1]):
        with pytest.raises(UserError, match=f"at least two runs, not {len(few)}; name more"):
            ensemble(few)
    with pytest.raises(UserError, match="finetune/ is named twice"):
        ensemble([*runs, runs[1] + "/"])


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("there.json", "exists"), ("there.csv", "does not end in .json"), ("no/such/folder/e.json", "there is no folder")],
)
def test_an_output_that_cannot_be_written_is_refused(runs: list[str], tmp_path: Path, out: str, sentence: str) -> None:
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(UserError, match=sentence):
        ensemble(runs[:2], out=str(tmp_path / out))
    assert (tmp_path / "there.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_every_mistake_is_told_at_once(runs: list[str], spoilt: Spoil, tmp_path: Path) -> None:
    given = [runs[0], runs[0], spoilt(runs[1], "unfinished"), spoilt(runs[1], "other-data"), str(tmp_path / "gone")]
    with pytest.raises(UserError) as caught:
        ensemble(given, mean="medians", weights="validatoin", out="e.txt")  # type: ignore[arg-type]
    sentences = str(caught.value).splitlines()
    assert len(sentences) == 7
    expected = ["'medians'", "did you mean 'validation'?", "e.txt", "twice", "no finished run", "gone", "'letters'"]
    for sentence, words in zip(sentences, expected, strict=True):
        assert words in sentence


def test_the_command_line_names_what_may_be_chosen() -> None:
    with pytest.raises(UserError, match=r"^mean is 'median'; choose one of: logits, probabilities$"):
        cli.run(["ensemble", "a", "b", "--mean", "median"])
    with pytest.raises(UserError, match=r"^weights is 'valid'; did you mean 'validation'\?$"):
        cli.run(["ensemble", "a", "b", "--weights", "valid"])
    with pytest.raises(UserError, match="runs missing"):
        cli.run(["ensemble"])


@pytest.mark.parametrize("change", [{"img_size": 12}, {"in_chans": 3}, {"num_classes": 4}])
def test_networks_that_take_other_images_or_have_other_classes_are_refused(
    tiny_vit: Build, change: dict[str, int]
) -> None:
    with pytest.raises(UserError, match=r"of network 1 and .* of network 2"):
        Ensemble([Fixed(0.5, 0.5), tiny_vit(), tiny_vit(**change)])


def test_loaded_runs_of_other_sizes_are_refused(runs: list[str]) -> None:
    with pytest.raises(UserError, match=r"image_size is \(8, 8\) of network 0 and \(16, 16\) of network 1"):
        Ensemble([load_run(runs[0]).network, load_run(runs[2]).network])


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((0.5,), "there are 1 weights for 2 networks"),
        ((0.5, 0.6), "sum to one"),
        ((-0.5, 1.5), "from 0 to 1"),
        ((float("nan"), 1.0), "from 0 to 1"),
    ],
)
def test_weights_that_are_not_convex_are_refused(weights: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Ensemble([Fixed(0.5, 0.5), Fixed(0.5, 0.5)], weights=weights)


def test_an_ensemble_of_one_network_is_refused() -> None:
    with pytest.raises(UserError, match="at least two networks, not 1"):
        Ensemble([Fixed(0.5, 0.5)])
