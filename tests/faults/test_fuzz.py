"""Bad input of every kind: whatever is given, a command ends by itself, with a sentence, and spoils nothing.

Half of the tries change the words of a command or the values of a configuration file; there, a training that is not
refused is stopped where its first step would be. The other half damage a file that a command reads: pictures, tables,
shards, models, and each file of a run.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attention_transfer.config.base import options_of
from attention_transfer.data import find_source
from attention_transfer.engine import fit
from attention_transfer.verbs import VERBS

MINUTES = float(os.environ.get("ATTENTION_TRANSFER_MINUTES", "0"))
SEED = int(os.environ.get("ATTENTION_TRANSFER_SEED", "0"))
SHORT = 10  # tries of a kind

# fmt: off
WEIRD = [
    "", " ", "0", "-1", "1", "2", "0.5", "1e309", "nan", "-inf", "9" * 5000, "1_000", "0x10", "1e-400",
    "99999999999",
    "null", "true", "False", "[]", "{}", "[[[[", "[" * 2000, "{a: {b: [1, null]}}", "[1, two, 3.0]", "a: b: c", "- x",
    ".", "..", "~", "/dev/null", "nothing", "photos", "teacher", "table.csv", "birds.tar", "config.yaml", "x" * 5000,
    "*", "**/*", "{a,b}" * 12, "{1..9999999}", "[x", "photos[0]", "photos/", "a\nb", "é\udcff", "\u202e",
    "%s%n", "$HOME",
    "&a [*a]", "!!python/object/apply:os.getcwd []", "!!binary ////", "@nothing", "-", "--", "=", "--seed", "1,2,,",
    ",",
    "timm/", "torchvision/", "timm/local-dir:", "timm/teacher", "torchvision/Nothing:photos", "copy", "distill", "lr",
    "Distill", "{class_path: os.system, init_args: {command: id}}", "[{class_path: Copy, init_args: {heads: -1}}]",
    "scratch", "random", "cpu", "cuda", "mps", "auto", "fp16", "bf16", "0,1,2", "onnx", "hf",
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 10**40, 1e308, float("nan"), "", "x", [], {}, [None], {"a": {}}, [[1]], b"x",
]
PARTS = [
    b"", b"\0", b"\xff\xfe", b"null", b"NaN", b"-1", b"1e999", b"9" * 5000, b"{}", b"[" * 3000, b'"', b"\n",
    b"\r", b"../",
]
FOREIGN = [b"PK\x03\x04", b"\x80\x04.", b"\x89PNG\r\n\x1a\n", b"{}", b"[]", b"null", b"%PDF-1.4", b"a: b\n"]
# fmt: on


@dataclass
class Try:
    """A command, and what is done to a file before it; `written` are folders that it may change."""

    words: list[str]
    file: str | None = None
    damage: str = ""
    content: bytes | None = None
    written: set[str] = field(default_factory=lambda: {"out"})


class Fuzzer:
    """Makes tries in a folder of valid inputs, and puts it back after each."""

    def __init__(self, sandbox: Any, command: Callable[..., Any], results: Callable[[Path], Any], seed: int) -> None:
        self.sandbox, self.command, self.results_of, self.seed = sandbox, command, results, seed
        self.whole = sandbox.files()
        self.folders = [path for path in self.whole if (sandbox.path / path).is_dir()]
        self.options = _options()
        self.ends: Counter[str] = Counter()
        self.results = results(sandbox.path / "run")

    def tries(self, kind: Callable[[Fuzzer, random.Random], Try]) -> Iterator[str]:
        """Problems, as they are found."""
        until, number = time.monotonic() + 60 * MINUTES, 0
        while time.monotonic() < until if MINUTES else number < SHORT:
            chosen = kind(self, random.Random(f"{kind.__name__} {self.seed} {number}"))
            for problem in self.problems(chosen):
                said = f"{kind.__name__}, seed {self.seed}, try {number}: {problem}: {_short(chosen)}"
                print(said, flush=True)
                yield said
            number += 1

    def problems(self, chosen: Try) -> Iterator[str]:
        """Give a command among spoilt files; say what went wrong."""
        self.spoil(chosen)
        before = self.sandbox.files(*chosen.written)
        outcome = self.command(*chosen.words)
        self.ends[f"exit code {outcome.code}"] += 1
        if outcome.code == 130 and "stopped" in outcome.text:  # where its first step would be
            outcome = type(outcome)(0, outcome.text)
        if problem := outcome.problem:
            yield f"{problem}\n{outcome.text[-1500:]}"
        after = self.sandbox.files(*chosen.written)
        if lost := [path for path, content in before.items() if path not in after or after[path] != content]:
            yield f"changed {lost}"
        if (
            "resumed" in chosen.damage
            and outcome.code == 0
            and self.results_of(self.sandbox.path / "run") != self.results
        ):
            yield "other numbers"
        self.restore()

    def spoil(self, chosen: Try) -> None:
        """Put the damage in place."""
        if chosen.file is None:
            return
        path = self.sandbox.path / chosen.file
        if "resumed" in chosen.damage:
            (self.sandbox.path / "run/summary.json").unlink()
        if chosen.content is not None:
            path.write_bytes(chosen.content)
            return
        path.unlink(missing_ok=True)
        if "folder" in chosen.damage:
            path.mkdir()
        elif "link" in chosen.damage:
            path.symlink_to(path.name)
        elif "pipe" in chosen.damage:
            os.mkfifo(path)

    def restore(self) -> None:
        """Leave exactly the valid inputs."""
        root = self.sandbox.path
        for path in sorted(root.rglob("*"), reverse=True):
            name = str(path.relative_to(root))
            right = path.is_dir() if self.whole.get(name, b"") is None else path.is_file()
            if name in self.whole and right and not path.is_symlink():
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in self.folders:
            (root / name).mkdir(exist_ok=True)
        for name, content in self.whole.items():
            path = root / name
            if content is not None and (not path.is_file() or path.read_bytes() != content):
                path.write_bytes(content)


def words(fuzzer: Fuzzer, rng: random.Random) -> Try:
    """A command with other, missing, repeated or unknown words."""
    given = list(rng.choice(_commands(fuzzer.sandbox)))
    verb = given[0]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randint(1, len(given))
        match rng.randrange(6):
            case 0 | 1:
                given.insert(place, f"{rng.choice(fuzzer.options[verb])}={rng.choice(WEIRD)}")
            case 2:
                given[place:place] = [rng.choice(fuzzer.options[verb]), rng.choice(WEIRD)]
            case 3 if place < len(given):
                name, equals, _ = given[place].partition("=")
                given[place] = f"{name}={rng.choice(WEIRD)}" if equals else rng.choice(WEIRD)
            case 4 if place < len(given):
                del given[place]
            case _:
                given.insert(place, rng.choice(WEIRD) if rng.random() < 0.5 else rng.choice(given))
    if rng.random() < 0.03:
        given[0] = rng.choice(WEIRD)
    return Try(given, written=_named(given))


def configurations(fuzzer: Fuzzer, rng: random.Random) -> Try:
    """A configuration file with other names, values or bytes."""
    content = yaml.safe_load(str((fuzzer.whole["config.yaml"] or b"").decode()))
    for _ in range(rng.choice((1, 1, 2, 3))):
        part = rng.choice([content, *(value for value in content.values() if isinstance(value, dict))])
        key = rng.choice([*part, "x", "extends", "rules", "tune", "init_parts", "pairing", "loggers", 7, None])
        part[key] = rng.choice([*VALUES, *WEIRD[:20]])
        if rng.random() < 0.2:
            part.pop(key)
    text = yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogateescape")
    damage = "" if rng.random() < 0.6 else rng.choice(_DAMAGES)
    content_now = _damaged(text, damage, rng) if damage else text
    given = ["train", "--config=config.yaml", "--out=out"]
    return Try(given, "config.yaml", damage, content_now)


def files(fuzzer: Fuzzer, rng: random.Random) -> Try:
    """A damaged file, and a command that reads it."""
    top = rng.choice([top for top in _readers(fuzzer.sandbox) for _ in range(4 if top == "run" else 1)])
    names = [name for name, content in fuzzer.whole.items() if name.split("/")[0] == top and content is not None]
    name = rng.choice(names)
    given = rng.choice(_readers(fuzzer.sandbox)[top])
    damage = rng.choice([*_DAMAGES, *_DAMAGES, "folder", "link", "pipe", "gone"])
    whole = fuzzer.whole[name]
    assert whole is not None
    content = _damaged(whole, damage, rng) if damage in _DAMAGES else None
    resumed = "--out=run" in given
    if resumed and not name.endswith("summary.json") and rng.random() < 0.5:
        damage += ", resumed"
    return Try(list(given), name, damage, content, {"out", "run"} if resumed else {"out"})


_DAMAGES = ("cut", "empty", "flipped", "other bytes", "more bytes", "another part", "twice", "foreign")


def _damaged(whole: bytes, damage: str, rng: random.Random) -> bytes:
    """The file with flipped bits, without its end, with foreign parts, and alike."""
    content = bytearray(whole)
    size = len(content) or 1
    place = rng.randrange(size if rng.random() < 0.5 else min(size, 200))
    match damage:
        case "cut":
            return whole[:place]
        case "empty":
            return b""
        case "flipped":
            for _ in range(rng.randint(1, 4) if whole else 0):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case "other bytes":
            content[place : place + rng.randint(1, 9)] = rng.randbytes(rng.randint(1, 9))
        case "more bytes":
            content[place:place] = rng.choice(PARTS)
        case "another part":
            text = whole.split(b":") if b":" in whole else whole.split(b",")
            text[rng.randrange(len(text))] = rng.choice(PARTS)
            return (b":" if b":" in whole else b",").join(text)
        case "twice":
            return whole + whole
        case "foreign":
            return rng.choice(FOREIGN)
    return bytes(content)


def _readers(sandbox: Any) -> dict[str, list[list[str]]]:
    """Commands that read what lies in a place."""
    resumed = sandbox.train("run")
    return {
        "photos": [["data", "photos"], ["predict", "run", "photos", "--out=out.csv"], ["data", "photos", "--strict"]],
        "table.csv": [["data", "table.csv"]],
        "birds.tar": [["data", "birds.tar"]],
        "teacher": [["doctor", "teacher", "run/model"], ["predict", "teacher", "photos/test"], sandbox.train("out")],
        "run": [
            ["predict", "run", "photos/test"],
            ["predict", "run/model", "photos/test", "--overlay=out"],
            ["export", "run", "--out=out"],
            ["ensemble", "run", "other"],
            ["doctor", "run/model", "teacher"],
            resumed,
            resumed,
        ],
    }


def _commands(sandbox: Any) -> list[list[str]]:
    """Commands in which nothing is wrong."""
    read = [given for readers in _readers(sandbox).values() for given in readers if "--out=run" not in given]
    configured = ["train", "--config=config.yaml", "--out=out"]
    trainings = [sandbox.train("out"), sandbox.pretrain("out"), sandbox.compare("out"), configured]
    return [*read, *trainings, *trainings, ["presets"]]


def _named(given: list[str]) -> set[str]:
    """Places that a command is told to write to, and may have, as they hold what such a command writes."""
    return {"out"} | (
        {"run", "other"} & {word.rpartition("=")[2] for word in given} if "--overwrite" in given else set()
    )


def _short(chosen: Try) -> str:
    given = [word if len(word) < 200 else f"{word[:60]}… ({len(word)} characters)" for word in chosen.words]
    content = "" if chosen.content is None or len(chosen.content) > 3000 else repr(chosen.content[:600])
    return f"{given} {chosen.file or ''} {chosen.damage} {content}"


def _options() -> dict[str, list[str]]:
    """The flags of each verb."""
    own = ["--help", "--config", "--print_config", "--rules+", "--rules.weight", "--rules.help"]
    return {
        name: [*own, *(f"--{option.replace('_', '-')}" for option in options_of(verb.config))]
        for name, verb in VERBS.items()
    }


@pytest.fixture(scope="module")
def stocked(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Inputs of every kind: with two finished runs, a table, a shard and a configuration file."""
    sandbox = trained.copy(tmp_path_factory.mktemp("stocked") / "sandbox")
    with sandbox.entered():
        pictures = sorted(sandbox.path.glob("photos/*/*/*.png"))
        rows = [f"{path.relative_to(sandbox.path)},{path.parts[-2]},{path.parts[-3]}" for path in pictures]
        Path("table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
        with tarfile.open("birds.tar", "w") as archive:
            for number, path in enumerate(pictures):
                for suffix, content in (("png", path.read_bytes()), ("cls", b"%d" % (number % 2))):
                    entry = tarfile.TarInfo(f"{number:04}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        words = sandbox.train("out")[1:]
        settings: dict[str, Any] = {"recipe": {}}
        for word in words:
            name, _, value = word.removeprefix("--").partition("=")
            group, _, last = name.rpartition(".")
            (settings[group] if group else settings)[last.replace("-", "_")] = yaml.safe_load(value)
        del settings["out"]
        Path("config.yaml").write_text(yaml.safe_dump(settings))
    return sandbox


@pytest.fixture
def fuzzer(stocked: Any, command_line: Any, results_of: Any) -> Iterator[Fuzzer]:
    """Makes tries."""
    with stocked.entered():
        yield Fuzzer(stocked, command_line, results_of, SEED)


def _report(fuzzer: Fuzzer, found: list[str]) -> None:
    print(f"{fuzzer.ends.total()} tries: {dict(fuzzer.ends)}, {len(found)} problems")
    assert not found, "\n\n".join(found[:30])


def _stopped(*arguments: Any, **settings: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [words, configurations])
def test_other_words_and_configurations(kind: Any, fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "Loop", _stopped)
    _report(fuzzer, list(fuzzer.tries(kind)))
    assert fuzzer.ends["exit code 2"] > 0


def test_damaged_files(fuzzer: Fuzzer) -> None:
    _report(fuzzer, list(fuzzer.tries(files)))


def test_the_commands_that_are_spoilt_are_right_before(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "Loop", _stopped)
    wrong = []
    for given in map(list, dict.fromkeys(map(tuple, _commands(fuzzer.sandbox)))):
        outcome = fuzzer.command(*given)
        if outcome.code != (130 if given[0] in ("train", "pretrain", "compare") else 0):
            wrong.append((given, outcome))
        fuzzer.restore()
    assert not wrong


def test_a_fault_that_is_planted_is_found(fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: an exception that is no sentence, a lost file, a changed file, a command without an end."""

    def bug(path: str) -> Any:
        raise ZeroDivisionError(path)

    def loss(path: str) -> Any:
        Path("photos/train/cat/0.png").unlink()
        Path("teacher/config.json").write_text("{}")
        return find_source(path)

    def hang(path: str) -> Any:
        while path:
            pass

    def found(planted: Any) -> str:
        monkeypatch.setattr("attention_transfer.data.check.find_source", planted)
        return "\n".join(fuzzer.problems(Try(["data", "photos"])))

    assert found(find_source) == ""
    assert "ZeroDivisionError" in found(bug)
    lost = found(loss)
    assert "changed" in lost
    assert "photos/train/cat/0.png" in lost
    assert "teacher/config.json" in lost
    assert Path("photos/train/cat/0.png").is_file()  # put back
    monkeypatch.setitem(fuzzer.command.__globals__, "HANG", 1)
    assert "Hang" in found(hang)


def test_other_numbers_are_found(fuzzer: Fuzzer) -> None:
    """The harness itself: a checkpoint with other weights, which a reader without checksums would take."""
    path = Path("run/checkpoints/best.ckpt")
    content = torch.load(path)
    content["state_dict"] = {name: value + 1 for name, value in content["state_dict"].items()}
    changed = io.BytesIO()
    torch.save(content, changed)
    chosen = Try(fuzzer.sandbox.train("run"), str(path), "resumed", changed.getvalue(), {"out", "run"})
    assert "other numbers" in "\n".join(fuzzer.problems(chosen))
