"""Every published recipe starts: two steps of its own settings, on a tiny network of its depth and heads."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from attention_transfer import cli
from attention_transfer.config.training import Compare, Train
from attention_transfer.data import DATA, Splits
from attention_transfer.parser import parse
from attention_transfer.training import Recipe, ResolvedRecipe, RunFolder, read_config, read_metrics
from attention_transfer.vit import ViTSpec, describe, load_vit, save_vit, select

FOLDER = Path(__file__).parent.parent / "recipes"
BASES = {"imagenet.yaml", "base.yaml", "transmix.yaml"}
CLAIMS = sorted((FOLDER / "claims").glob("*.yaml"))
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name not in BASES and path not in CLAIMS)
NAMES = [str(path.relative_to(FOLDER).with_suffix("")) for path in RECIPES]


def _training(path: Path) -> str:
    """What makes the training that a recipe starts: many differ only in images, numbers, or size of the network."""

    def kind(value: Any) -> Any:
        match value:
            case dict():
                return {key: kind(part) for key, part in value.items()}
            case list():
                return [kind(part) for part in value]
            case str():
                return re.sub(r"\d+", "a number", value)
            case bool() | None:
                return value
        return "a number"

    config = read_config(path)
    named = {key: "a network" for key in ("teacher", "init") if config.get(key, "random") not in ("random", "teacher")}
    return yaml.safe_dump(kind({key: config[key] for key in config if key not in ("data", "fraction")} | named))


UNLIKE = [*{_training(path): path for path in reversed(RECIPES)}.values()]

_WHOLE = dict(DATA)  # of which the tests put fewer into its place


@lru_cache
def few(data: str = "digits") -> Splits:
    """Twenty images to train, ten to validate, ten to test: two, one and one of each class."""
    whole = _WHOLE[data]()

    def first(labels: Any, number: int) -> Any:
        return np.sort(np.concatenate([np.flatnonzero(labels == c)[:number] for c in range(10)]))

    sizes = {"train": 2, "validation": 1, "test": 1}
    return replace(whole, **{n: getattr(whole, n).take(first(getattr(whole, n).labels, k)) for n, k in sizes.items()})


@lru_cache
def published(name: str) -> ViTSpec:
    """What the network of that name is like; ViT-L where it is one of the user's own."""
    architecture = name.removeprefix("timm/") if name.startswith("timm/") else "vit_large_patch16_224"
    with torch.device("meta"):
        return describe(timm.create_model(architecture.partition(".")[0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    """Gives the folder of a network with the heads of another and a depth, 4 patches of 4 pixels, 2 channels a head."""

    @lru_cache
    def saved(name: str, depth: int) -> str:
        folder, spec = tmp_path_factory.mktemp("network"), published(name)
        shape = {"img_size": 8, "patch_size": 4, "embed_dim": 2 * spec.heads, "mlp_ratio": 1.0, "num_classes": 10}
        save_vit(timm.create_model(spec.name, **shape, depth=depth), folder / "model")
        return str(folder / "model")

    return saved


def rules_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a recipe's own rules."""
    return [rule.get("init_args", {}) for rule in config.get("rules") or []]


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_it_is_read(path: Path) -> None:
    _, config = parse(["train", "--config", str(path)])
    assert isinstance(config, Train)
    assert config.problems() == [] == (config.recipe or Recipe()).problems()
    written = read_config(path)
    assert (config.preset, config.data) == (written["preset"], written["data"])
    assert config.fraction == written.get("fraction", 1.0)


@pytest.mark.parametrize("path", UNLIKE, ids=[str(path.relative_to(FOLDER).with_suffix("")) for path in UNLIKE])
def test_it_starts(
    path: Path, tmp_path: Path, tiny: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATA, "digits", few)
    config = read_config(path)
    blocks_are_named = any("layers" in settings for settings in rules_of(config))
    network = tiny(config["teacher"], published(config["teacher"]).depth if blocks_are_named else 4)
    out = tmp_path / "run"
    words = ["train", "--config", str(path), "--teacher", network, "--data", "digits", "--image-size", "8"]
    words += ["--init", network] if "init" in config else []
    cli.run([*words, "--epochs", "2", "--out", str(out)])
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    resolved = RunFolder(out).trained_config()
    assert resolved.preset == config["preset"]
    assert load_vit(str(out)).global_pool == config.get("pool", "token")
    bound = [rule["class_path"].rpartition(".")[2] for rule in config.get("rules", [])]
    assert [rule["class_path"].rpartition(".")[2] for rule in resolved.rules][: len(bound)] == bound
    for key, value in config["recipe"].items():
        assert resolved.recipe[key] == (2 if key == "epochs" else value)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_its_rules_name_blocks_and_heads_that_its_network_has(path: Path) -> None:
    config = read_config(path)
    spec = published(config["teacher"])
    for settings in rules_of(config):
        assert select(settings.get("layers"), spec.depth, "layers")
        assert select(settings.get("heads"), spec.heads, "heads")


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_its_networks_are_published(path: Path) -> None:
    config = read_config(path)
    for name in (config["teacher"], config.get("init", "")):
        if name.startswith("timm/"):
            assert timm.models.get_pretrained_cfg(name.removeprefix("timm/")).has_weights


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_smaller_batch_has_a_smaller_rate_and_the_schedule_never_rises(path: Path) -> None:
    """The released code's lowest rate is absolute: at batches below 512, copy's rate would rise from its peak."""
    recipe = ResolvedRecipe(**read_config(path)["recipe"])
    small = replace(recipe, batch_size=recipe.batch_size // 8)
    assert small.peak_lr == pytest.approx(recipe.peak_lr / 8)
    assert small.min_lr <= 1
    assert recipe.problems() == small.problems() == []


def test_rates_are_the_papers() -> None:
    """Base rate times batch over 256 (Li et al. 2024): 8e-3 and 8e-4, falling to 2e-3 and 1e-6."""
    copy = ResolvedRecipe(**read_config(FOLDER / "attention-transfer/copy-vit-l.yaml")["recipe"])
    distill = ResolvedRecipe(**read_config(FOLDER / "attention-transfer/distill-vit-l.yaml")["recipe"])
    assert (copy.peak_lr, copy.peak_lr * copy.min_lr) == pytest.approx((8e-3, 2e-3))
    assert (distill.peak_lr, distill.peak_lr * distill.min_lr) == pytest.approx((8e-4, 1e-6))
    assert (copy.warmup * copy.epochs, distill.warmup * distill.epochs) == (5, 20)


def test_each_is_listed_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text()
    missing = [name for name in NAMES if f"`{Path(name).name}`" not in text and not name.startswith("gta/")]
    assert missing == []
    gta = {f"{s}-{f}{mix}" for s in ("cub", "cars", "aircraft", "dogs", "pets") for f in (15, 30, 50, 100)
           for mix in ("", "-transmix")}  # fmt: skip
    assert {Path(name).name for name in NAMES if name.startswith("gta/")} == gta


def _part_of(path: Path, other: Path) -> bool:
    """Whether the trainings of a setting are among those of another, but for images and numbers."""
    ours, theirs = read_config(path), read_config(other)
    presets = [{*config.pop("presets").split(",")} for config in (ours, theirs)]
    varying = ("data", "seeds", "shots", "epochs", "out")
    kinds = [{key: value for key, value in config.items() if key not in varying} for config in (ours, theirs)]
    return presets[0] < presets[1] and kinds[0] == kinds[1]


WHOLE = [path for path in CLAIMS if not any(_part_of(path, other) for other in CLAIMS)]


@pytest.mark.parametrize("path", CLAIMS, ids=[path.stem for path in CLAIMS])
def test_a_setting_of_the_claims_is_read(path: Path) -> None:
    _, config = parse(["compare", "--config", str(path)])
    assert isinstance(config, Compare)
    assert config.problems() == []
    assert len(str(config.seeds).split(",")) >= 6  # with fewer, the sign-flip test can't reach 5 %


@pytest.mark.parametrize("path", WHOLE, ids=[path.stem for path in WHOLE])
def test_a_setting_of_the_claims_starts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(path)
    data = config.get("data", "digit-scenes")
    scenes = few(data)
    monkeypatch.setitem(DATA, data, lambda: scenes)
    words = ["compare", "--config", str(path), "--seeds", "0", "--shots", "1", "--epochs", "1"]
    if "data" not in config:  # the network and the images are given on the command line
        words += ["--data", data, "--teacher", "builtin/vit_characters", "--image-size", "48"]
    cli.run([*words, "--out", str(tmp_path / "c")])
    methods = {row["preset"] for row in csv.DictReader((tmp_path / "c" / "results.csv").open())}
    assert methods == {*config["presets"].split(",")}
