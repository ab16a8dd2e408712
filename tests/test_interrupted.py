"""Commands that come to a bad end: stopped, killed, out of disk. Nothing half-written stays, and nothing is in the way.

A limit on the size of files stands for a full disk: every library meets a real error of the system, only its number is
another one.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from attention_transfer import Run, cli, train
from attention_transfer.data import Placement, digits
from attention_transfer.engine.metrics import Scores
from attention_transfer.training import Recipe, log
from attention_transfer.viewing import Point, SheetRow, accuracy_chart, attention_sheet, save, save_sheet
from attention_transfer.vit import save_vit
from attention_transfer.writing import whole_file, whole_folder, writing
from tests.warm import Python

RECIPE = Recipe(epochs=2, validate_every=1)


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "run"
    return train("finetune", teacher=teacher, shots=2, recipe=RECIPE, out=str(out))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/c.png", "deep/d.png")):
        digits().test.images[index].save(folder / name)
    return folder


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Gives a command as a user does; its exit code, and what it said."""
    before = signal.getsignal(signal.SIGINT)

    def give(line: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["attention-transfer", *line.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    yield give
    signal.signal(signal.SIGINT, before)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing fail where a file gets larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def below(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _noise(side: int) -> Image.Image:
    return Image.frombytes("RGB", (side, side), os.urandom(3 * side * side))


def _torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"w": torch.randn(10_000)}, file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 10_000),
    "torch": _torch,
    "safetensors": lambda path: save_file({"w": torch.randn(10_000)}, path),
    "pillow": lambda path: _noise(100).save(path, format="PNG"),
    "matplotlib": lambda path: Figure().savefig(path, format="png", metadata={"Comment": "x" * 10_000}),
}


@pytest.mark.parametrize("library", WRITERS)
def test_an_error_of_the_disk_names_the_file_and_leaves_what_was_there(library: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(OSError, match="File too large") as caught, files_of_at_most(2_000), whole_file(target) as file:
        WRITERS[library](file)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(target))
    assert target.read_text() == "before"
    assert below(tmp_path) == ["file"]
    with whole_file(target) as file:
        WRITERS[library](file)
    assert target.stat().st_size > 2_000
    assert below(tmp_path) == ["file"]


def _sheet(path: Path) -> Path:
    whole = Placement((64, 64), (1, 1), (0, 0, 64, 64))
    return save_sheet(attention_sheet([SheetRow("a", _noise(64), whole, [])], []), path)


def _chart(path: Path) -> Path:
    return save(accuracy_chart({"5 labels": {"copy": Point(0.7, 0.6, 0.8)}}), path)


@pytest.mark.parametrize("draw", [_sheet, _chart])
def test_a_figure_that_can_not_be_written_leaves_the_one_before(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    before = draw(tmp_path / "figure.png").read_bytes()
    with pytest.raises(OSError, match="File too large") as caught, files_of_at_most(1_000):
        draw(tmp_path / "figure.png")
    assert caught.value.filename == str(tmp_path / "figure.png")
    assert below(tmp_path) == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == before


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("out of memory"), OSError("no number"), ValueError("x")):
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_a_folder_is_replaced_by_a_whole_one_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "some" / "model"
    with pytest.raises(OSError, match="File too large"), files_of_at_most(2_000), whole_folder(target) as folder:
        folder.mkdir()
        (folder / "small").write_text("x")
        _torch(folder / "large")
    assert below(tmp_path) == []
    for content in ("first", "second"):
        with whole_folder(target) as folder:
            folder.mkdir()
            (folder / content).write_text(content)
        assert below(tmp_path) == ["some", "some/model", f"some/model/{content}"]
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        folder.mkdir()
        raise KeyboardInterrupt
    assert below(target) == ["second"]


# Each of these gives the same command in a process of its own, forked after the imports, which ends at a chosen call.
KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from attention_transfer import cli
from attention_transfer.writing import whole_folder
from attention_transfer.evaluation.overlay import Overlays

folder, out, looks = map(Path, sys.argv[1:4])
sys.argv[1:4] = []

def at_call(number, owner, name, *signals):
    function, calls = getattr(owner, name), []
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            for one in signals:
                os.kill(os.getpid(), one)
        return function(*args, **kwargs)
    setattr(owner, name, counted)

def ended(prepare):
    child = os.fork()
    if child == 0:
        prepare()
        cli.main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [code, out.exists(), [entry.name for entry in looks.iterdir() if not entry.name.startswith(".")]]

def twice():
    at_call(2, Overlays, "write", signal.SIGINT)
    at_call(2, shutil, "rmtree", signal.SIGINT)  # while it clears away what it has drawn itself

def half_a_model():
    with whole_folder(folder / "model") as model:
        model.mkdir()
        (model / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

ends = [
    ended(lambda: at_call(2, Overlays, "write", signal.SIGKILL)),
    ended(twice),
    ended(lambda: at_call(2, Path, "replace", signal.SIGKILL)),  # one picture is in its place
    ended(lambda: None),
]
ended(half_a_model)
left = [entry.name for entry in folder.iterdir()]
with whole_folder(folder / "model") as model:
    model.mkdir()
print(json.dumps([ends, left, [entry.name for entry in folder.iterdir()]]))
"""


def test_what_is_killed_is_not_in_the_way_of_the_same_command(
    run: Run, photos: Path, tmp_path: Path, python: Python
) -> None:
    places = (tmp_path / "models", tmp_path / "out.csv", tmp_path / "looks")
    places[0].mkdir()
    words = ["predict", str(run.path), str(photos), "--batch-size", "1"]
    options = ["--out", str(places[1]), "--overlay", str(places[2])]
    done = python("-c", KILLED, *map(str, places), *words, *options)
    assert done.returncode == 0, done.stderr
    ends, left, cleared = json.loads(done.stdout.splitlines()[-1])
    assert ends[:2] == [[-signal.SIGKILL, False, []], [-signal.SIGINT, False, []]]
    assert ends[2] == [-signal.SIGKILL, False, ["a.png"]]
    assert ends[3][:2] == [0, True]
    assert "Traceback" not in done.stderr
    assert below(tmp_path / "looks") == ["a.png", "b.png", "deep", "deep/c.png", "deep/d.png"]
    assert len(left) == 1
    assert left[0].startswith(".model.")
    assert cleared == ["model"]


def _presses_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function at whose n-th call Ctrl-C is pressed."""
    calls: list[int] = []

    def pressed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    return pressed


def _with_places(line: str, run: Run, photos: Path, folder: Path) -> str:
    """A command in which words in capitals have become paths."""
    shutil.copytree(run.path, folder / "second")
    (folder / "work").mkdir()
    out = folder / "work" / "out"
    for word, path in {"RUN2": folder / "second", "RUN": run.path, "PHOTOS": photos, "OUT": out}.items():
        line = line.replace(word, str(path))
    return line


STOPPED = [
    ("data digits --out OUT.json", "data.check", "_look", 2),
    ("predict RUN PHOTOS --out OUT.csv --overlay OUT/deep", "evaluation.overlay", "overlaid", 2),
    ("export RUN --out OUT/deep", "evaluation.export", "_difference", 1),
    ("ensemble RUN RUN2 --out OUT.json", "evaluation.ensemble", "_log_probabilities", 2),
]


@pytest.mark.parametrize(("line", "room", "name", "call"), STOPPED, ids=[line.split()[0] for line, *_ in STOPPED])
def test_ctrl_c_leaves_nothing_of_a_command_and_it_can_be_given_again(
    line: str,
    room: str,
    name: str,
    call: int,
    run: Run,
    photos: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, module = _with_places(line, run, photos, tmp_path), import_module(f"attention_transfer.{room}")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _presses_at(call, getattr(module, name)))
        code, text = command(line)
    assert (code, text.strip().splitlines()[-1]) == (130, "stopped")
    assert "Traceback" not in text
    assert below(tmp_path / "work") == []
    assert command(line)[0] == 0
    assert below(tmp_path / "work") != []


FULL = [
    ("data digits --out OUT.json", "out.json", 100),
    ("predict RUN PHOTOS --out OUT.csv", "out.csv", 100),
    ("predict RUN PHOTOS --out OUT.csv --overlay OUT", "out/a.png", 200),
    ("export RUN --out OUT", "out", 2_000),
    ("export RUN --to hf --out OUT", "out", 2_000),
    ("ensemble RUN RUN2 --out OUT.json", "out.json", 100),
]


@pytest.mark.parametrize(("line", "file", "size"), FULL, ids=[line for line, *_ in FULL])
def test_where_the_disk_is_full_the_file_is_named_and_the_command_can_be_given_again(
    line: str, file: str, size: int, run: Run, photos: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    if "--to hf" in line:
        pytest.importorskip("transformers")
    line = _with_places(line, run, photos, tmp_path)
    with files_of_at_most(size):
        code, text = command(line)
    assert code == 2
    assert text.strip().splitlines()[-1] == (
        f"error: {tmp_path / 'work' / file}: File too large; fix that, then give the command again"
    )
    assert below(tmp_path / "work") == []
    assert command(line)[0] == 0
    assert (tmp_path / "work" / file).exists()


@pytest.mark.parametrize("preset", ["scratch", "copy"])
def test_a_run_goes_on_where_the_disk_was_full_at_its_end(
    preset: str,
    teacher: str,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = import_module("attention_transfer.training.train")

    def full(model: nn.Module, folder: Path, **options: Any) -> None:
        with files_of_at_most(2_000 if folder.name == failing else 10**9):
            save_vit(model, folder, **options)

    out, failing = tmp_path / "run", {"scratch": "model", "copy": "teacher"}[preset]
    line = f"train --preset {preset} --teacher {teacher} --shots 1 --epochs 1 --loggers [] --out {out}"
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_vit", full)
        code, text = command(line)
    assert code == 2
    assert text.strip().splitlines()[-1] == (
        f"error: {out / failing}: File too large; fix that, then the same command goes on"
    )
    assert not [name for name in below(out) if name.startswith((f"{failing}/", f".{failing}"))]
    code, text = command(line)
    assert code == 0
    assert (out / failing / "model.safetensors").is_file()
    assert (out / "summary.json").is_file()


def _limited_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function at whose n-th call the disk is full."""
    calls: list[int] = []

    def limited(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        with files_of_at_most(10 if len(calls) == call else 10**9):
            return function(*args, **kwargs)

    return limited


@pytest.mark.parametrize(
    ("owner", "name", "call", "file"),
    [
        (torch, "save", 3, "checkpoints/best.ckpt"),
        (torch, "save", 2, "checkpoints/last.ckpt"),
        ("attention_transfer.engine.metrics", "write_whole", 3, "metrics.jsonl"),
        ("attention_transfer.training.train", "write_whole", 1, "model/README.md"),
        (log._File, "emit", 2, "log.txt"),
    ],
    ids=["best.ckpt", "last.ckpt", "metrics.jsonl", "README.md", "log.txt"],
)
def test_a_run_goes_on_where_the_disk_was_full_meanwhile(
    owner: Any,
    name: str,
    call: int,
    file: str,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, out = sys.modules[owner] if isinstance(owner, str) else owner, tmp_path / "run"
    options = "--epochs 4 --recipe.validate_every 1 --recipe.ema_decay null --loggers []"
    line = f"train --preset scratch --shots 2 {options} --out {out}"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _limited_at(call, getattr(owner, name)))
        code, text = command(line)
    assert code == 2
    assert text.strip().splitlines()[-1] == (
        f"error: {out / file}: File too large; fix that, then the same command goes on"
    )
    assert "Traceback" not in text
    assert [name for name in below(out) if Path(name).name.startswith(".")] == []
    assert command(line)[0] == 0
    assert (out / "summary.json").is_file()


def test_ctrl_c_while_a_run_is_tested_is_answered_as_any_other(
    tmp_path: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"train --preset scratch --shots 2 --epochs 1 --loggers [] --out {tmp_path / 'run'}"
    with monkeypatch.context() as patch:
        patch.setattr(Scores, "add", _presses_at(2, Scores.add))  # the first is that of the only validation
        code, text = command(line)
    assert (code, text.strip().splitlines()[-1]) == (130, "stopped; the same command goes on from the last checkpoint")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert command(line)[0] == 0


def test_a_finished_run_needs_no_place_to_write(run: Run, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    again = train("finetune", teacher=teacher, shots=2, recipe=RECIPE, out=str(run.path))
    assert again.summary == run.summary
