"""The command line: flags, sentences and exit codes."""

from __future__ import annotations

import errno
import re
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

from attention_transfer import Copy, Distill, Guide, UserError, cli, ui
from attention_transfer.config.base import options_of
from attention_transfer.config.export import Export
from attention_transfer.config.predict import Predict
from attention_transfer.config.presets import PRESETS, Preset
from attention_transfer.config.recipe import Recipe
from attention_transfer.config.training import Compare, Train
from attention_transfer.parser import parse
from attention_transfer.plain_yaml import read_mapping
from attention_transfer.training import read_metrics
from attention_transfer.verbs import VERBS
from tests.warm import Python

T = TypeVar("T")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("trian", "there is no verb 'trian'; did you mean 'train'?"),
        ("", "name a verb: demo, data, pretrain, train, compare, predict, export"),
        ("train --presett copy", "there is no option --presett; did you mean '--preset'?"),
        ("train --preset copi", "there is no preset 'copi'; did you mean 'copy'?"),
        ("train --recipe.lrr 1", "there is no option --recipe.lrr; did you mean '--recipe.lr'?"),
        ("train --recipe.learning_rate 1", "there is no option --recipe.learning_rate; did you mean '--recipe.lr'?"),
        ("train --lr 3", "there is no option --lr; did you mean '--recipe.lr'?"),
        ("train --recipe.lr fast", "recipe.lr is fast; give a value of type float"),
        ("train --preset scratch --seed -1", "seed is -1; give a number from 0 to"),
        ("train --preset scratch --image-size 0", "image_size is 0; give a number of pixels"),
        ("train --loggers wandb", 'loggers is wandb; give a list in quoted brackets, such as "[wandb]"'),
        (
            "train --preset scratch --data x[b]y",
            "there is no data set 'x[b]y'; choose one of: character-scenes, digit-scenes, digit-scenes-shift, digits.",
        ),
        ("train --seed 1e400", "seed is inf; give a value of type int"),
        (f"train --seed {'9' * 5_000}", "seed: a number of so many digits can't be read"),
        ("train --out", "--out has no value; give one"),
        ("train extra", "extra is one argument too many"),
        ("train --shots many", "shots is many; give a value of type int"),
        ("train --rules+=Distil", "there is no rule 'Distil'; did you mean 'Distill'?"),
        ("train --rules+=Distill --rules.weight=-1", "Distill.weight is -1.0; give a finite number of at least 0"),
        (
            "train --preset scratch --data mnist",
            "there is no data set 'mnist'; choose one of: character-scenes, digit-scenes, digit-scenes-shift, digits",
        ),
        ("train --preset copy --teacher builtin/vit_digit", "there is no built-in model 'vit_digit'"),
        ("compare --recipe.lr fast", "recipe.lr is fast; give a value of type float"),
        ("predict", "run and images missing; add what is missing, or see --help"),
        ("demo --quick --full", "quick and full exclude each other; choose one"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.run(arguments.split())
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_all_mistakes_of_flags_and_configurations_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("recipe: {lr: fast, epochs: 0}\nprest: copy\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\nseed: x\nloggers: wandb\n")
    with pytest.raises(UserError) as caught:
        cli.run(["train", "--config", str(tmp_path / "c.yaml"), "--shots", "", "--fraction=", "--device", "tpu"])
    said = str(caught.value).splitlines()
    assert said[:2] == [
        "--shots is empty; give a value, or leave it out",
        "--fraction is empty; give a value, or leave it out",
    ]
    assert sorted(said[2:]) == [
        "device is 'tpu'; did you mean 'cpu'?",
        'loggers is wandb; give a list in quoted brackets, such as "[wandb]"',
        "recipe.epochs is 0; give a number of at least 1 and at most 1,000,000",
        "recipe.lr is fast; give a value of type float",
        "seed is x; give a value of type int",
        "there is no option 'prest'; did you mean 'preset'?",
    ]


@pytest.mark.parametrize(
    ("verb", "text", "sentence"),
    [
        ("train", "preset: scratch\nrecipe:\n", "recipe is empty; give its settings by name"),
        ("pretrain", "recipe: [1]\n", "recipe is [1]; give its settings by name"),
        ("train", "preset:\n", "preset is empty; give a value"),
        ("train", "rules: &r [*r]\n", "{file} holds a value that is a part of itself"),
        ("train", "rules: [{class_path: nowhere.Rule}]\n", "there is no rule 'nowhere.Rule'; choose one of: BSS, Copy"),
        ("train", "rules: [3]\n", "rules holds 3, which is none"),
        ("train", "pairing: antigravity.Pairing\n", "pairing is 'antigravity.Pairing'; give its settings by name"),
        ("train", '"": 3\n', "a name in the configuration is empty"),
        ("train", "config: a\n", "there is no option 'config' in a configuration"),
        ("train", "preset: scratch\nseed: 99999999999999999999\n", "seed is a number beyond 64 bits"),
        ("train", "preset: scratch\nrecipe: {weight_decay: .inf}\n", "recipe.weight_decay is"),
        ("train", "preset: scratch\nout: ''\n", "out is empty"),
        ("compare", "preset: copy\n", "there is no option 'preset'; did you mean 'presets'?"),
        ("compare", "seeds: '0,,1'\n", "seeds is '0,,1', which has an empty part"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(verb: str, text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        cli.run([verb, "--config", str(file)])
    assert str(caught.value).startswith(sentence.format(file=file))
    assert "antigravity" not in sys.modules


def test_files_extend_each_other_to_an_end(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(UserError, match="extends a file that extends another, and so on over 16 times"):
        cli.run(["train", "--config", str(tmp_path / "0.yaml")])


def test_a_flag_imports_no_rule_that_is_not_known() -> None:
    for words in (["--rules+=antigravity.Fly"], ["--rules", "[{class_path: antigravity.Fly}]"]):
        with pytest.raises(UserError, match=r"there is no rule 'antigravity\.Fly'"):
            cli.run(["train", *words])
    assert "antigravity" not in sys.modules


def test_every_verb_with_a_device_takes_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name, verb in VERBS.items() if "device" in options_of(verb.config)]:
        with pytest.raises(SystemExit):
            parse([name, "--help"])
        assert "--device auto|cpu|cuda|mps" in capsys.readouterr().out, name


def test_wrong_input_leaves_with_code_2_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["attention-transfer", "train", "--preset", "copi"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip() == "error: there is no preset 'copi'; did you mean 'copy'?"


@pytest.mark.parametrize("verb", ["train --preset scratch", "pretrain"])
def test_compiling_without_a_compiler_is_refused(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"recipe\.compile needs the C\+\+ compiler (g|clang)\+\+, which is not there"):
        cli.run([*verb.split(), "--device", "cpu", "--recipe.compile", "--out", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "goes_on"), [("train", True), ("predict", False)])
def test_what_is_stopped_or_fails_says_whether_it_goes_on(
    verb: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code, sentence in (
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "No space left", "a[b]c"), 2, "error: a[b]c: the disk is full; make space, then"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 2, "error: x: Read-only file system; fix that, then"),
    ):

        def broken(_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(cli, "run", broken)
        monkeypatch.setattr("sys.argv", ["attention-transfer", verb])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == code
        said = capsys.readouterr().err
        assert ("the same command goes on" in said) == goes_on
        assert said.startswith(sentence)
        assert len(said.splitlines()) == 1


def test_the_first_ctrl_c_shows_the_cursor_that_a_bar_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    before, written = signal.getsignal(signal.SIGINT), []
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.write", lambda _, data: written.append(data))
            patch.setattr(ui, "console", ui.Console(stderr=True, force_terminal=True))
            patch.setattr(cli, "run", lambda _: signal.raise_signal(signal.SIGINT))
            patch.setattr("sys.argv", ["attention-transfer", "presets"])
            with pytest.raises(SystemExit) as caught:
                cli.main()
        assert caught.value.code == 130
        assert written == [b"\x1b[?25h"]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the second ends the process
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stays_ignored_where_the_shell_ignores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "run", lambda _: signal.raise_signal(signal.SIGINT))
        monkeypatch.setattr("sys.argv", ["attention-transfer", "presets"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_is_repeated_from_its_configuration(teacher: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = f"train --preset distill --teacher {teacher} --shots 1 --epochs 2 --recipe.lr 0.002 --out {first}"
    cli.run(arguments.split())
    cli.run(f"train --config {first / 'config.yaml'} --out {second}".split())
    one, two = read_mapping(first / "config.yaml"), read_mapping(second / "config.yaml")
    assert {**one, "out": None} == {**two, "out": None}
    assert one["recipe"]["lr"] == 0.002
    rows = [read_metrics(run / "metrics.jsonl") for run in (first, second)]
    without_times = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in each] for each in rows]
    assert without_times[0] == without_times[1]


def test_print_config_shows_what_would_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["train", "--preset", "gta", "--recipe.lr", "0.5", "--print_config"])
    assert not caught.value.code
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["preset"], shown["recipe"]["lr"]) == ("gta", 0.5)


def test_switches_stand_alone_and_dashes_are_underscores() -> None:
    settings = parsed("train --overwrite --image-size 16 --recipe.batch-size 4", Train)
    assert settings.recipe is not None
    assert (settings.overwrite, settings.image_size, settings.recipe.batch_size) == (True, 16, 4)
    assert parsed("train --image_size 16", Train).image_size == 16
    assert parsed("export --overwrite runs/a", Export) == Export("runs/a", overwrite=True)
    assert parsed("predict run a.png --top 2 b.png", Predict) == Predict("run", ["a.png", "b.png"], top=2)
    assert parsed("train --overwrite false --strict=true --pretrained no", Train).pretrained is False


def parsed(words: str, kind: type[T]) -> T:
    """The configuration of a command."""
    _, config = parse(words.split())
    assert isinstance(config, kind)
    return config


def test_values_are_of_the_types_of_their_settings() -> None:
    config = parsed("train --recipe.lr 1e-3 --recipe.ema-decay null --devices auto --recipe.epochs 7 --shots 5", Train)
    assert config.recipe == Recipe(lr=1e-3, ema_decay=None, epochs=7)
    assert (config.devices, config.shots) == ("auto", 5)
    assert parsed("train --loggers [wandb,mlflow] --pretrained w.pth", Train).loggers == ["wandb", "mlflow"]
    assert parsed("compare --grid.pool [token,avg] --grid.recipe.batch-size [8]", Compare).grid == {
        "pool": ["token", "avg"],
        "recipe.batch_size": [8],
    }
    words = "compare --grid batch-size=8,16 --grid rules.weight=0.5 --grid=rules.layers=[[0,1],last]"
    assert parsed(words, Compare).grid == {
        "batch_size": [8, 16],
        "rules.weight": [0.5],
        "rules.layers": [[0, 1], "last"],
    }


def test_rules_are_named_with_their_settings() -> None:
    words = "train --rules+=Copy --rules.layers=[0,1] --rules+=Distill --rules.weight 5 --rules.layers=3"
    assert parsed(words, Train).rules == [Copy(layers=[0, 1]), Distill(weight=5.0, layers=3)]
    assert parsed("train --rules []", Train).rules == []
    assert parsed("train --rules null", Train).rules is None
    assert parsed("train --rules Guide", Train).rules == [Guide()]


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ("--rules.weight 5", ["--rules.weight sets a rule, but none is named before it; add --rules+=NAME"]),
        (
            "--rules+=Distill --rules.weigth=5 --rules.target=maps",
            [
                "there is no option 'weigth' of Distill; did you mean 'weight'?",
                "Distill.target is 'maps'; did you mean 'map'?",
            ],
        ),
    ],
)
def test_wrong_settings_of_rules_are_listed(words: str, sentences: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(["train", *words.split()])
    assert str(caught.value).splitlines() == sentences


def test_a_wrong_preset_is_listed_with_other_mistakes() -> None:
    with pytest.raises(UserError) as caught:
        parse(["train", "--preset", "copi", "--seed", "x", "--recipe.epochs", "0"])
    assert str(caught.value).splitlines() == [
        "seed is x; give a value of type int",
        "there is no preset 'copi'; did you mean 'copy'?",
        "recipe.epochs is 0; give a number of at least 1 and at most 1,000,000",
    ]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert not caught.value.code
    assert capsys.readouterr().out == f"attention-transfer {version('attention-transfer')}\n"


def test_what_is_printed_of_a_configuration_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "train --rules+=Guide --pairing.heads mean --recipe.lr 0.5 --init-parts [qk] --fraction 0.5"
    with pytest.raises(SystemExit):
        parse([*words.split(), "--print_config"])
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert parsed(f"train --config {tmp_path / 'c.yaml'}", Train) == parsed(words, Train)


def test_the_help_of_a_preset_shows_its_own_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "gta", Preset("x", init="teacher", recipe={"lr": 0.123}))
    assert parsed("train --preset=gta", Train).recipe == Recipe(lr=0.123)
    assert parsed("train", Train).recipe == PRESETS["distill"].own_recipe
    with pytest.raises(SystemExit):
        parse(["train", "--preset", "gta", "--help"])
    assert "(default 0.123)" in capsys.readouterr().out


def test_the_flags_are_these() -> None:
    """A new flag is a promise: it changes tests/flags.txt, the docs and the changelog together."""
    flags = {
        f"{name} --{option.replace('_', '-')}"
        for name, verb in VERBS.items()
        for option in options_of(verb.config)
        if "." not in option and option not in ("recipe", *verb.words)
    }
    assert flags | VERBS.keys() == {*(Path(__file__).parent / "flags.txt").read_text().splitlines()}


def test_a_configuration_in_what_would_be_replaced_is_not(tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "run" / "config.yaml"
    out.mkdir()
    config.write_text("preset: scratch\nshots: 1\n")
    for words in (["--config", str(config)], [f"--config={config}"]):
        with pytest.raises(UserError, match=r"config\.yaml is read, and would be replaced in"):
            cli.run(["train", *words, "--out", str(out), "--overwrite"])
    assert config.read_text() == "preset: scratch\nshots: 1\n"


@pytest.mark.parametrize("flag", ["", "-v"])
def test_a_run_says_three_lines_and_all_of_its_log_where_asked(
    flag: str, teacher: str, tmp_path: Path, python: Python
) -> None:
    run = tmp_path / "a folder with many words in its name that is longer than eighty columns would be" / "run"
    words = ["train", "--preset=distill", f"--teacher={teacher}", "--shots=1", "--epochs=2", "--recipe.workers=0"]
    done = python("-m", "attention_transfer", *words, f"--out={run}", *filter(None, [flag]))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    recipe, where, result = [line for line in lines if re.search("precision fp32, as|: on cpu|test accuracy", line)]
    assert recipe.startswith("distill seed 0: augment shift, ")
    assert where.startswith("distill seed 0: on cpu (")
    assert result.startswith("distill seed 0: test accuracy ")
    assert result.endswith(f" s, in {run}")
    log = (run / "log.txt").read_text()
    assert "10 labelled images, student" in log
    assert ("10 labelled images, student" in done.stderr) == bool(flag)
    assert len(lines) == 3 or flag
