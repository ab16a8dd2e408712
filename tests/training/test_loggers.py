"""Weights & Biases and MLflow, played: what they are sent, in which record, and how the record ends."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from attention_transfer import UserError
from attention_transfer.engine.loggers import closing, log_row, make_loggers
from attention_transfer.training import ResolvedRecipe, read_metrics


class PlayedError(Exception):
    """What a service says."""


class PlayedMetric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


@dataclass
class Record:
    """A record of either service, by whatever names it has for these things."""

    settings: dict[str, Any]
    steps: list[int] = field(default_factory=list)
    ended: list[Any] = field(default_factory=list)


@dataclass
class Services:
    """Two services that remember records for longer than a process lives; a new process has none open."""

    wandb: dict[str, Record] = field(default_factory=dict)
    mlflow: dict[str, Record] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    refuses: bool = False
    dies_at: int | None = None
    module: ModuleType = field(default_factory=lambda: ModuleType("wandb"))

    def log(self, record: Record, step: int) -> None:
        record.steps.append(step)
        if step == self.dies_at:
            self.dies_at = None
            raise PlayedError("the process ends here")

    def check(self) -> None:
        if self.refuses:
            raise PlayedError("no key")

    def new_process(self) -> None:
        self.module.__dict__["run"] = None


class PlayedRun:
    """What `wandb.init` gives."""

    def __init__(self, services: Services, settings: dict[str, Any]) -> None:
        self.services, self.id = services, settings["id"]
        self.record = services.wandb.setdefault(self.id, Record(settings))
        self.config = SimpleNamespace(update=lambda *args, **kwargs: None)

    def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

    def log(self, values: dict[str, float]) -> None:
        self.services.log(self.record, int(values["trainer/global_step"]))

    def finish(self, exit_code: int) -> None:
        self.record.ended.append(exit_code)
        self.services.new_process()


class PlayedClient:
    """MLflow's client."""

    def __init__(self, services: Services, uri: str) -> None:
        services.check()
        services.places.append(uri)
        self.services, self.runs = services, services.mlflow

    def get_run(self, name: str) -> Any:
        if name not in self.runs:
            raise PlayedError(f"no run {name}")
        return SimpleNamespace(info=SimpleNamespace(experiment_id="1"))

    def get_experiment_by_name(self, name: str) -> None: ...

    def create_experiment(self, **settings: Any) -> str:
        return "1"

    def create_run(self, **settings: Any) -> Any:
        name = f"run{len(self.runs)}"
        self.runs[name] = Record(settings)
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        for step in sorted({metric.step for metric in metrics}):
            self.services.log(self.runs[run_id], step)

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].ended.append(status)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].ended.append(status)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    played = Services()

    def module(name: str, **content: Any) -> ModuleType:
        made = played.module if name == "wandb" else ModuleType(name)
        made.__dict__.update(content, __spec__=SimpleNamespace(name=name))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    def init(**settings: Any) -> PlayedRun:
        played.check()
        run = PlayedRun(played, settings)
        played.module.__dict__["run"] = run
        return run

    module("wandb", run=None, init=init)
    module("wandb.errors", Error=PlayedError)
    module("mlflow")
    module("mlflow.exceptions", MlflowException=PlayedError)
    module("mlflow.tracking", MlflowClient=lambda uri: PlayedClient(played, uri))
    module("mlflow.tracking.context")
    module("mlflow.tracking.context.registry", resolve_tags=lambda: {"mlflow.user": "someone"})
    module("mlflow.entities", Metric=PlayedMetric, Param=lambda key, value: (key, value))
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return played


BOTH = ["wandb", "mlflow"]


def test_a_resumed_run_goes_on_in_its_records_and_repeats_nothing(
    services: Services, tiny: Any, tmp_path: Path
) -> None:
    recipe = ResolvedRecipe(epochs=4, batch_size=8, validate_every=2)  # 3 steps an epoch; checkpoints behind 6 and 12
    services.dies_at = 9
    with pytest.raises(PlayedError):
        tiny.fit(tiny.objective("scratch"), tmp_path / "run", recipe, loggers=["mlflow", "wandb"])
    (first,) = services.mlflow.values()
    assert first.steps == [3, 6, 9]
    services.new_process()
    tiny.fit(tiny.objective("scratch"), tmp_path / "run", recipe, loggers=["mlflow", "wandb"])
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [3, 6, 9, 12]
    (mlflow,), (wandb,) = services.mlflow.values(), services.wandb.values()
    assert mlflow.steps == [3, 6, 9, 12]
    assert wandb.steps == [3, 6, 12]  # its row for step 9 was lost with the process; the others are there once
    assert mlflow.ended[-2:] == ["RUNNING", "FINISHED"]


def test_each_run_has_records_of_its_own_that_end_with_it(services: Services, tiny: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.fit(tiny.objective("scratch"), tmp_path / name, loggers=BOTH)
    assert [record.steps for record in services.wandb.values()] == [[3, 6, 9]] * 2
    assert [record.ended for record in services.wandb.values()] == [[0], [0]]
    assert {record.settings["project"] for record in services.wandb.values()} == {"attention-transfer"}
    assert [record.steps for record in services.mlflow.values()] == [[3, 6, 9]] * 2
    assert [record.ended for record in services.mlflow.values()] == [["FINISHED"]] * 2
    known = [json.loads((tmp_path / name / "loggers.json").read_text()) for name in ("a", "b")]
    assert [one["wandb"] for one in known] == list(services.wandb)
    assert [one["mlflow"] for one in known] == list(services.mlflow)


def test_a_record_that_the_user_has_open_is_used_and_left_open(services: Services, tmp_path: Path) -> None:
    services.module.init(id="sweep")
    loggers = make_loggers(["wandb"], tmp_path, "run", settings={})
    with closing(loggers):
        log_row(loggers, {"step": 1, "train/loss": 2.0})
    assert services.wandb["sweep"].steps == [1]
    assert services.wandb["sweep"].ended == []
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "sweep"}


def test_a_run_that_fails_leaves_failed_records(services: Services, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), closing(make_loggers(BOTH, tmp_path, "run", settings={})):
        raise KeyboardInterrupt
    assert next(iter(services.wandb.values())).ended == [1]
    assert next(iter(services.mlflow.values())).ended == ["FAILED"]


def test_mlflow_writes_into_the_run_unless_a_server_is_named(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_loggers(["mlflow"], tmp_path, "run", settings={})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    (tmp_path / "other").mkdir()
    make_loggers(["mlflow"], tmp_path / "other", "run", settings={})
    assert services.places == [f"sqlite:///{tmp_path}/mlflow/mlflow.db", "http://server"]
    assert not (tmp_path / "other" / "mlflow").exists()


@pytest.mark.parametrize(("name", "message"), [("wandb", "wandb login"), ("mlflow", "leave mlflow out")])
def test_a_service_that_refuses_says_what_to_do(name: str, message: str, services: Services, tmp_path: Path) -> None:
    services.refuses = True
    with pytest.raises(UserError, match=rf"can't be used \(no key\).*{message}"):
        make_loggers([name], tmp_path, "run", settings={})
    assert not (tmp_path / "loggers.json").exists()


def test_a_record_that_is_not_there_any_more_is_named(services: Services, tmp_path: Path) -> None:
    make_loggers(["mlflow"], tmp_path, "run", settings={})
    services.mlflow.clear()
    with pytest.raises(UserError, match=r"no run run0.*remove .*loggers\.json to begin another record"):
        make_loggers(["mlflow"], tmp_path, "run", settings={})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_folder_that_can_not_be_made_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / name).write_text("in the way")
    with pytest.raises(UserError, match=f"the folder of logger {name}, {tmp_path / name}, can't be made"):
        make_loggers([name], tmp_path, "run", settings={})
    assert (tmp_path / name).read_text() == "in the way"
