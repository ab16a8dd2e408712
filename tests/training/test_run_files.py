"""What a run's files hold is declared once; what is damaged or someone else's is named in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_transfer.engine.metrics import last_step
from attention_transfer.errors import UserError
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.text_files import read_json
from attention_transfer.training import run_files

SUMMARY = {
    "preset": "copy",
    "seed": 0,
    "train": {"images": 1, "steps": 1, "seconds": 0.5},
    "best_epoch": 1,
    "validation": {"images": 1, "accuracy": 1},
    "test": {"images": 1, "accuracy": 0.5, "cross_entropy": 1.0, "calibration_error": 0.1},
}
ROW = '{"epoch": 1, "step": 2, "train/loss": 0.5}\n'
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "summary.json": (run_files.read_summary, json.dumps(SUMMARY)),
    "loggers.json": (read_json, '{"wandb": "x"}'),
    "metrics.jsonl": (run_files.read_metrics, ROW * 2),
    "config.yaml": (run_files.read_run_config, "model: x\ndata: digits\nrecipe: {epochs: 1}\n"),
}
DAMAGED = {
    "empty": b"",
    "zeros": bytes(100),
    "no text": b"\xff\xfe\x00",
    "another kind": b"[1, 2]",
    "a word": b"word",
    "someone else's": b'{"site_name": "mine"}',
    "null": b"null",
    "deep": b"[" * 100_000,
    "a long number": b'{"seed": ' + b"1" * 5_000 + b"}",
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", [*DAMAGED, "cut"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    reader, sound = READERS[name]
    path = tmp_path / name
    path.write_text(sound)
    assert reader(path)
    path.write_bytes(sound.encode()[: len(sound) - 8] if damage == "cut" else DAMAGED[damage])
    if (name, damage) in (("loggers.json", "someone else's"), ("metrics.jsonl", "empty")):
        reader(path)  # it may hold any names; no epoch is done yet
        return
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        reader(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("seed",), "x", "seed is 'x'"),
        (("train",), None, "train has no names with values"),
        (("test", "accuracy"), "high", "test.accuracy is 'high'"),
        (("best_epoch",), True, "best_epoch is 'True'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(place: tuple[str, ...], value: Any, said: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(SUMMARY))
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(said)):
        run_files.read_summary(tmp_path / "summary.json")


def test_damaged_lines_of_metrics_are_named_and_the_last_sound_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text('{"epoch": "x", "step": 1}\n' + ROW + '{"epoch": 3, "st')
    assert last_step(path) == 2
    with pytest.raises(UserError, match="damaged in line 1"):
        run_files.read_metrics(path)


def test_a_short_file_that_unfolds_into_a_large_one_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 100,000 values"):
        read_mapping(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(UserError, match="a part of itself"):
        read_mapping(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: b\n" * 300_000)
    with pytest.raises(UserError, match="larger than a configuration may be"):
        read_mapping(tmp_path / "config.yaml")


def test_settings_that_an_earlier_run_lacks_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{preset: copy, data: digits, rules: [], recipe: {}, teacher: null, image_size: 32}")
    config = run_files.read_run_config(path)
    assert isinstance(config, run_files.TrainedConfig)
    assert (config.image_size, config.pretrained, config.pairing, config.fraction) == (32, True, None, 1.0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rules: none", "rules is 'none'"),
        ("teacher: 3", "teacher is '3'"),
        ("fraction: true", "fraction is 'True'"),
        ("shots: some", "shots is 'some'"),
    ],
)
def test_a_setting_of_another_type_is_named(setting: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    sound: dict[str, Any] = {
        "preset": "copy",
        "data": "digits",
        "rules": [],
        "recipe": {},
        "teacher": None,
        "fraction": 1,
    }
    path.write_text(yaml.safe_dump(sound))
    assert run_files.read_run_config(path).data == "digits"
    path.write_text(yaml.safe_dump(sound | yaml.safe_load(setting)))
    with pytest.raises(UserError, match=re.escape(f"{path} is not the configuration of a run ({said})")):
        run_files.read_run_config(path)


def test_a_required_setting_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{preset: copy, data: digits, rules: [], recipe: {}}")
    with pytest.raises(UserError, match="teacher is missing"):
        run_files.read_run_config(path)
