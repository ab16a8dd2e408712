"""The verb `compare`: the grid, what it skips, and what it writes."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import UserError, cli, compare
from attention_transfer.config.training import Pretrain
from attention_transfer.data import DATA, load_data, read_image
from attention_transfer.errors import UserErrors
from attention_transfer.evaluation import looks
from attention_transfer.experiments.cells import Cells
from attention_transfer.experiments.compare import Comparison
from attention_transfer.experiments.results import markdown
from attention_transfer.experiments.rows import Labels, Row
from attention_transfer.experiments.workers import Computed
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import Recipe, RunFolder, Training, TrainingResult, fit
from attention_transfer.vit import load_vit, save_vit

RECIPE = Recipe(epochs=2, batch_size=20, validate_every=1)


def compare_tiny(teacher: str, out: Path, **changes: Any) -> Comparison:
    settings = {"presets": "scratch,finetune,copy", "seeds": "0", "shots": "1", "recipe": RECIPE}
    return compare(**{**settings, "teacher": teacher, "out": str(out), **changes})


@pytest.fixture(scope="module")
def comparison(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare_tiny(teacher, tmp_path_factory.mktemp("comparison") / "c", seeds="0,1", fractions="0.05")


def test_the_grid_is_presets_by_seeds_by_labels(comparison: Comparison) -> None:
    assert {(r.preset, r.labels, r.seed) for r in comparison.rows} == {
        (preset, labels, seed)
        for preset in ("scratch", "finetune", "copy")
        for labels in ("1 labels a class", "5 % of the labels")
        for seed in (0, 1)
    }
    assert {r.images for r in comparison.rows if r.labels == "1 labels a class"} == {10}


def test_a_shared_recipe_leaves_a_method_what_makes_it_that_method(teacher: str, tmp_path: Path) -> None:
    comparison = compare_tiny(teacher, tmp_path / "c", presets="gta,gta-transmix")
    recipes = {r.preset: RunFolder(Path(r.run)).config().recipe for r in comparison.rows}
    assert {r["batch_size"] for r in recipes.values()} == {20}
    assert [recipes[name]["transmix"] for name in ("gta", "gta-transmix")] == ["off", "student"]
    assert recipes["gta-transmix"]["cutmix"] == 1.0


def test_results_are_written_as_rows_and_as_a_table(comparison: Comparison) -> None:
    with (comparison.path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["test_accuracy"]) for r in rows] == [r.test_accuracy for r in comparison.rows]
    assert (comparison.path / "results.md").read_text() == markdown(comparison.rows)


def test_the_page_stands_alone(comparison: Comparison) -> None:
    page = (comparison.path / "report.html").read_text()
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) == 3  # images of three digits; charts are part of the page
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.count("<svg ") == 4  # accuracies and curves of both amounts of labels
    for name in ("scratch", "finetune", "copy"):
        assert f'<th scope="row">{name}</th>' in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert {(comparison.path / unquote(link)).resolve() for link in links} == {Path(r.run) for r in comparison.rows}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that are begun."""
    names: list[str] = []

    def counting(training: Training) -> TrainingResult:
        names.append(training.name)
        return fit(training)

    monkeypatch.setattr(import_module("attention_transfer.training.train"), "fit", counting)
    return names


def test_what_is_done_is_not_done_again_and_more_can_be_added(
    comparison: Comparison, teacher: str, trained: list[str]
) -> None:
    again = compare_tiny(teacher, comparison.path, seeds="0,1,2", fractions="0.05")
    assert trained == ["scratch seed 2", "finetune seed 2", "copy seed 2"] * 2
    old = {(r.preset, r.labels, r.seed): r for r in comparison.rows}
    assert {k: r for r in again.rows if (k := (r.preset, r.labels, r.seed)) in old} == old


def test_a_tuned_teacher_is_the_fine_tuned_network_of_the_same_labels_and_seed_and_is_made_once(
    teacher: str, tmp_path: Path, trained: list[str]
) -> None:
    done = compare_tiny(teacher, tmp_path / "c", presets="logit-kd,tuned-distill", seeds="3")
    assert [row.preset for row in done.rows] == ["logit-kd", "tuned-distill"]
    runs = {path.name for path in (done.path / "runs").iterdir()}
    assert runs == {"finetune-1shot-seed3", "logit-kd-1shot-seed3", "tuned-distill-1shot-seed3"}
    for name in ("logit-kd", "tuned-distill"):
        config = RunFolder(done.path / "runs" / f"{name}-1shot-seed3").trained_config()
        assert config.teacher == str(done.path / "runs" / "finetune-1shot-seed3")
    assert RunFolder(done.path / "runs" / "finetune-1shot-seed3").trained_config().teacher == teacher
    assert trained == ["finetune seed 3", "logit-kd seed 3", "tuned-distill seed 3"]


def test_without_a_teacher_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Pretrain] = []

    def refuse(config: Pretrain) -> None:
        asked.append(config)
        raise UserError("enough")

    monkeypatch.setattr(import_module("attention_transfer.experiments.compare"), "pretrain_teacher", refuse)
    with pytest.raises(UserError, match="enough"):
        compare(shots="1", out=str(tmp_path / "c"))
    assert asked == [Pretrain(out=str(tmp_path / "c" / "teacher"))]


def test_every_mistake_is_listed_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        compare("copi,distill", seeds="0,x", shots="0", fractions="1.5", out=str(tmp_path / "c"))
    message = str(caught.value)
    for part in ("did you mean 'copy'", "seeds has 'x'", "shots is 0", "fraction is 1.5"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_a_margin_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="margin is 0; give the difference that would not matter"):
        compare("copy,distill", margin=0.0, out=str(tmp_path / "c"))


def test_a_comparison_of_something_else_is_refused(comparison: Comparison, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epochs is None there and 3 here"):
        compare_tiny(teacher, comparison.path, epochs=3)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no comparison"):
        compare_tiny(teacher, tmp_path)


def test_a_wrong_teacher_or_too_many_shots_are_found_before_anything_is_written(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="elsewhere not found"):
        compare_tiny("elsewhere", tmp_path / "c")
    with pytest.raises(UserError, match="no teacher is named"):
        compare(shots="1", pretrained=False, out=str(tmp_path / "c"))
    with pytest.raises(UserError, match="shots is 1000"):
        compare_tiny(teacher, tmp_path / "c", shots="5,1000")
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_means_intervals_and_shares() -> None:
    def row(preset: str, seed: int, accuracy: float) -> Row:
        return Row(preset, "5 labels a class", seed, 50, accuracy, 1.0, 0.1, 0.5, 3, 10, 2.0, "x")

    rows = [row("scratch", s, 0.5) for s in (0, 1, 2)] + [row("finetune", s, 0.9) for s in (0, 1, 2)]
    rows += [row("copy", s, 0.8) for s in (0, 1, 2)]
    assert "| copy | 80.0 ± 0.0 | 75 % (75 to 75) | 2 | 3 |" in markdown(rows)
    assert "| scratch | 50.0 ± 0.0 | 0 % | 2 | 3 |" in markdown(rows)


def test_labels_name_themselves() -> None:
    assert (Labels(shots=5).slug, Labels(fraction=0.15).slug) == ("5shot", "15pct")


def test_seeds_and_sizes_are_looked_at_before_the_first_run(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserErrors, match="seed is -1") as caught:
        compare_tiny(teacher, tmp_path / "c", seeds="0,-1", image_size=0)
    assert "image_size is 0" in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device is cuda, but this machine has none"):
        compare_tiny(teacher, tmp_path / "c", device="cuda")
    assert not list(tmp_path.iterdir())


def test_every_run_has_the_device_and_is_as_strict(teacher: str, tmp_path: Path) -> None:
    found = compare_tiny(teacher, tmp_path / "c", presets="scratch", device="cpu", strict=True)
    config = read_mapping(Path(found.rows[0].run) / "config.yaml")
    assert (config["device"], config["strict"]) == ("cpu", True)


def test_any_setting_of_train_is_an_axis_and_the_others_are_shared(teacher: str, tmp_path: Path) -> None:
    axes: dict[str, list[object]] = {"pool": ["token", "avg"], "recipe.lr": [1e-3]}
    found = compare_tiny(teacher, tmp_path / "c", presets="scratch", trained=["head"], grid=axes)
    titles = ["1 labels a class, pool token, recipe.lr 0.001", "1 labels a class, pool avg, recipe.lr 0.001"]
    assert [row.labels for row in found.rows] == titles
    configs = [read_mapping(Path(row.run) / "config.yaml") for row in found.rows]
    assert [(c["pool"], c["recipe"]["lr"], c["trained"]) for c in configs] == [
        ("token", 1e-3, ["head"]),
        ("avg", 1e-3, ["head"]),
    ]
    assert (tmp_path / "c" / "runs" / "scratch-1shot-pool=avg-recipe.lr=0.001-seed0").is_dir()


def test_an_axis_that_there_is_not_is_refused(teacher: str, tmp_path: Path) -> None:
    axes: dict[str, list[object]] = {"recipe.lrr": [1.0], "data": ["digits"], "pool": ["all"], "lr": [], "seed": [1]}
    with pytest.raises(UserErrors) as caught:
        compare_tiny(teacher, tmp_path / "c", grid=axes)
    lines = str(caught.value).splitlines()
    assert lines[0] == "grid can't change 'recipe.lrr'; did you mean 'recipe.lr'?"
    assert lines[1].startswith("grid can't change 'data'; ")
    assert lines[2:4] == [
        "grid.pool is 'all'; choose one of: avg, token",
        "grid.lr is empty; give at least one value",
    ]
    assert lines[4].startswith("grid can't change 'seed'; ")


def test_what_is_given_twice_is_refused_in_any_spelling_and_all_of_it_at_once(teacher: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "presets": ["copy", "finetune", " copy"],
        "seeds": [0, 1, "1", 1.0],
        "shots": "2,1,02",
        "fractions": [1, 0.5, 1.0, "5e-1", 0.1, 0.1000000001],
        "grid": {
            "lr": [0.1, "1e-1", 1],
            "recipe.lr": [0.2],
            "pool": ["token", "avg", "token"],
            "trained": [["head"], "[head]"],
            "teacher": ["timm/a", "./timm/a", "timm//a/", "timm/b"],
        },
    }
    with pytest.raises(UserErrors) as caught:
        compare_tiny(teacher, tmp_path / "c", **settings)
    assert str(caught.value).splitlines() == [
        "presets has 'copy' twice; name each once",
        "seeds has 1 twice; name each once",
        "shots has 2 twice; name each once",
        "fractions has 1.0 twice; name each once",
        "fractions has 0.5 twice; name each once",
        "fractions has 0.1 and 0.1000000001, which are the same; name each once",
        "grid.lr has 0.1 twice; name each once",
        "grid.pool has 'token' twice; name each once",
        "grid.trained has ['head'] twice; name each once",
        "grid.teacher has 'timm/a' and './timm/a' and 'timm//a/', which are the same; name each once",
        "grid has 'lr' and 'recipe.lr', which are the same; name each once",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0,1,01"], "seeds has 1 twice"),
        (["--shots", "5,5"], "shots has 5 twice"),
        (["--fractions", "1,1.0"], "fractions has 1.0 twice"),
        (["--presets", "gta,copy,gta"], "presets has 'gta' twice"),
        (["--grid", "lr=1e-3,0.001"], "grid.lr has 0.001 twice"),
        (["--grid", "lr=1e-3", "--grid", "recipe.lr=1e-2"], "grid has 'lr' and 'recipe.lr', which are the same"),
    ],
)
def test_the_command_says_so_in_a_sentence_and_ends_with_2(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["attention-transfer", "compare", *words, "--out", str(tmp_path / "c")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"{says}; name each once" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_what_is_no_seed_or_share_is_named_with_all_else(tmp_path: Path) -> None:
    axes: dict[str, list[object]] = {"rules.weight": [0.1], "recipe.lrr": [1.0]}
    with pytest.raises(UserErrors) as caught:
        compare(["gta", "copi"], seeds=[1.5, True], fractions=["x"], grid=axes, out=str(tmp_path / "c"))  # type: ignore[list-item]
    assert str(caught.value).splitlines() == [
        "seeds has 1.5, which is no int; give numbers separated by commas",
        "seeds has True, which is no int; give numbers separated by commas",
        "fractions has 'x', which is no float; give numbers separated by commas",
        "there is no preset 'copi'; did you mean 'copy'?",
        "seeds is empty; name at least one",
        "grid can't change 'recipe.lrr'; did you mean 'recipe.lr'?",
    ]


def test_damaged_files_are_refused_where_that_is_asked_for(teacher: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(images / name / f"{number}.png")
    (images / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        compare_tiny(teacher, tmp_path / "c", data=str(images), strict=True)
    assert not (tmp_path / "c").exists()


def test_all_runs_together_decode_an_image_file_once(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pixels = tmp_path / "images", np.random.default_rng(0)
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for number in range(10):
            noise = pixels.integers(0, 256, (12, 10), dtype=np.uint8)
            Image.fromarray(noise).save(images / name / f"{number}.png")
    decoded, inside, shares = Counter[str](), [0], list[bool]()
    compute, read, module = Cells.compute, read_image, import_module("attention_transfer.data.images")

    def computing(cells: Cells, name: str) -> Computed:
        inside[0] += 1
        try:
            return compute(cells, name)
        finally:
            inside[0] -= 1
            shares.append((cells.folder / "decoded").is_dir())

    def reading(path: str) -> Image.Image:
        decoded.update([path] * inside[0])
        return read(path)

    monkeypatch.setattr(Cells, "compute", computing)
    monkeypatch.setattr(module, "read_image", reading)
    data = {"data": str(images), "shots": "", "fractions": "0.5", "presets": "scratch,finetune", "seeds": "0,1"}
    found = compare_tiny(teacher, tmp_path / "c", **data)
    assert len(found.rows) == 4
    assert len(decoded) > 4 + 4 + 6  # test, validation, and what two seeds choose of 12 training images
    assert set(decoded.values()) == {1}
    assert shares == [True] * 4
    assert not (tmp_path / "c" / "decoded").exists()


def test_where_masks_are_known_attention_is_held_against_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_data("digit-scenes")
    few = {name: getattr(whole, name).take(np.arange(30)) for name in ("train", "validation", "test")}
    monkeypatch.setitem(DATA, "digit-scenes", lambda: replace(whole, **few))
    torch.manual_seed(0)
    save_vit(load_vit("builtin/vit_characters", pretrained=False), tmp_path / "teacher")
    made = compare_tiny(
        str(tmp_path / "teacher"), tmp_path / "c", data="digit-scenes", presets="copy,finetune", recipe=RECIPE
    )
    teacher = load_vit(str(tmp_path / "teacher"))
    known = looks(teacher, teacher, few["test"])
    by_name = {row.preset: row for row in made.rows}
    assert by_name["copy"].attention_iou == pytest.approx(known.iou, abs=1e-6)  # it looks where its teacher does
    assert by_name["copy"].attention_share == pytest.approx(known.share, abs=1e-6)
    assert by_name["finetune"].attention_share != pytest.approx(known.share, abs=1e-6)
    with (made.path / "teacher.csv").open() as file:
        assert float(next(csv.DictReader(file))["attention_share"]) == known.share
    table = (made.path / "results.md").read_text()
    assert (
        f"| copy | {100 * made.rows[0].test_accuracy:.1f} | {100 * known.share:.1f} | {100 * known.iou:.1f} |" in table
    )
    assert f"Of the teacher's own attention {100 * known.share:.1f} % is on the object" in table
    assert "attention on the object,\u00a0%</th>" in (made.path / "report.html").read_text()
