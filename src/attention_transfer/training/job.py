"""One training, with every choice made: from the start or its last checkpoint to the kept weights and their scores."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attention_transfer.config.choices import LoggerName
from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.errors import Interrupted, UserError
from attention_transfer.training.attention_watch import WatchAttention
from attention_transfer.training.callbacks import (
    AveragedWeights,
    MetricsWriter,
    ShowProgress,
    Source,
    StopEarly,
    StopOnRequest,
    Stopwatch,
)
from attention_transfer.training.checkpoints import Keeper, WholeCheckpoints, newest_checkpoint, read_checkpoint
from attention_transfer.training.hardware import Hardware, launched_processes, this_process
from attention_transfer.training.loading import evaluation_loader, training_loader
from attention_transfer.training.loggers import closing, make_loggers
from attention_transfer.training.memory import OutOfMemory, ran_out_of_memory
from attention_transfer.training.module import ObjectiveModule, ShardedModule
from attention_transfer.training.objective import Supervised
from attention_transfer.training.progress import Display
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.samplers import Images, SeededSampler, class_weights, share_of_batch
from attention_transfer.training.sharding import in_shares
from attention_transfer.viewing import Point, learning_curves, save

log = logging.getLogger("attention_transfer")


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    Attributes:
        best_epoch: the epoch, from 1, whose weights were kept.
        validation: that epoch's validation metrics, by name.
        test: metrics on the test split, read once with the kept weights; empty where there is none.
        steps: optimiser steps.
        seconds: time in training, validation included, summed over resumptions.
    """

    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float]
    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained, with every choice made."""

    objective: Any
    folder: RunFolder
    recipe: ResolvedRecipe
    train: Images
    validation: Images
    test: Images | None
    classes: int | None
    prepare: nn.Module | None
    seed: int
    name: str
    hardware: Hardware
    workers: int
    loggers: tuple[LoggerName, ...]
    process: int = field(default_factory=this_process)
    evaluation_batch: int = 256

    @property
    def monitor(self) -> tuple[str, str]:
        """What the best epoch is chosen by, and whether more is better ("max") or less ("min")."""
        return ("validation/accuracy", "max") if self.classes is not None else ("validation/loss", "min")

    @property
    def micro_batch(self) -> int:
        """Images a forward pass on one device, at most."""
        return -(-self.recipe.batch_size // (self.hardware.processes * self.recipe.accumulate))


def run_job(job: Job) -> Fitted:
    """Train from the start or from the last checkpoint, to the end; the objective has the kept weights then.

    Raises:
        OutOfMemory: a device has no memory left.
    """
    if not job.hardware.sharded:
        return _run(job)
    # What is cut into shares can't be put together again; the objective that was given stays as it is, and on the CPU.
    fitted = _run(replace(job, objective=copy.deepcopy(job.objective)))
    kept = read_checkpoint(job.folder.best_checkpoint)["state_dict"]
    own = "objective."
    weights = {name.removeprefix(own): value for name, value in kept.items() if name.startswith(own)}
    job.objective.load_state_dict(weights)
    return fitted


def _run(job: Job) -> Fitted:
    recipe, process, processes = job.recipe, job.process, job.hardware.processes
    if processes > 1 and launched_processes() is not None:
        with _quiet():
            _meet(job)
    last, resumed = newest_checkpoint(job.folder) or (None, None)
    weights = class_weights(job.train) if recipe.balanced else None
    job.objective.train()  # what was loaded is in evaluation mode, and Lightning leaves modes as they are
    sampler = SeededSampler(job.train, seed=job.seed, weights=weights, process=process)
    if resumed is not None:
        sampler.set_epoch(int(resumed["epoch"]) + 1)
        recipe = replace(recipe, accumulate=max(recipe.accumulate, int(resumed.get("accumulate", 1))))
        job = replace(job, recipe=recipe)
    loader = training_loader(job.train, sampler, recipe, job.hardware, job.workers)
    images, steps = len(sampler), recipe.epochs * len(loader)
    kind = ShardedModule if job.hardware.sharded else ObjectiveModule
    module = kind(
        job.objective,
        recipe,
        steps=steps,
        classes=job.classes,
        prepare=job.prepare,
        micro_batch=job.micro_batch,
        share=partial(
            share_of_batch, images=images, batch_size=recipe.batch_size, process=process, processes=processes
        ),
    )
    done = 0 if resumed is None else int(resumed["global_step"])
    if resumed is not None:
        log.info("%s: resumed after step %d of %d", job.name, done, steps)
    epochs_done = 0 if resumed is None else int(resumed["epoch"]) + 1
    over = resumed is not None and resumed["callbacks"].get("StopEarly", {}).get("stopped_epoch", 0) > 0
    epochs = epochs_done if over else recipe.epochs  # stopped early, no summary
    try:
        return _trained(job, module, loader, steps=steps, done=(epochs_done, done), epochs=epochs, last=last)
    except UserError as error:
        raise UserError(_without_traceback(str(error))) from error
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise OutOfMemory(error, evaluating=module.evaluating) from error
        raise


def _without_traceback(message: str) -> str:
    """What a process that loads images has to say, without the traceback that torch puts around it."""
    if not message.startswith("Caught UserError in DataLoader worker"):
        return message
    return message.strip().rpartition("\n")[2].rpartition("UserError: ")[2]


def _trained(
    job: Job,
    module: ObjectiveModule,
    loader: DataLoader[Any],
    *,
    steps: int,
    done: tuple[int, int],
    epochs: int,
    last: Path | None,
) -> Fitted:
    """Train and test by Lightning; `done` are the epochs and steps of a resumed run."""
    monitor, mode = job.monitor
    recipe, watch, clock, stop = job.recipe, _watch(job), Stopwatch(), StopOnRequest()
    sources: dict[str, Source] = {"time": clock.values}
    if watch is not None:
        sources["agreement"] = watch.values
    with Display.open() as display, display.bar(job.name, steps, done=done[1]) as bar, _quiet():
        loggers = make_loggers(job.loggers, job.folder.path, job.name, done=done[1]) if job.process == 0 else []
        for logger in loggers:
            logger.log_hyperparams({"seed": job.seed, **asdict(recipe)})
        metrics = MetricsWriter(job.folder, sources, loggers, done=done[0])
        keeper = Keeper(job.folder, monitor, mode)
        callbacks: list[Callback] = [clock, metrics, ShowProgress(bar, monitor, clock), stop, keeper]
        if watch is not None:
            callbacks.insert(0, watch)  # before the writer of what it measures
        if recipe.early_stopping is not None:
            callbacks.insert(0, StopEarly(monitor, mode, recipe.early_stopping))
        if recipe.ema_decay is not None:
            callbacks.insert(0, AveragedWeights(recipe.ema_decay))
        with stop.listening():
            trainer = _trainer(job, callbacks, epochs=epochs)
            with closing(loggers):
                trainer.fit(module, loader, _in_order(job.validation, job), ckpt_path=last, weights_only=True)
                if stop.requested:  # during the last validation, after which there is no step to stop behind
                    raise Interrupted
            taken = trainer.global_step
            best = read_checkpoint(keeper.best)
            module.load_state_dict(in_shares(best["state_dict"], module.state_dict()))
            tested: dict[str, Tensor] = {}
            if job.test is not None:
                tester = _trainer(job, [stop], epochs=epochs)
                tester.test(module, _in_order(job.test, job), verbose=False)
                tested = tester.callback_metrics
        if stop.requested:
            raise Interrupted
    best_epoch = int(best["epoch"]) + 1
    if job.process == 0:
        _draw_curve(metrics.rows, job.folder, monitor, title=job.name)
    return Fitted(
        best_epoch=best_epoch,
        validation=_validation_at(metrics.rows, best_epoch),
        test={key.removeprefix("test/"): float(value) for key, value in tested.items() if key.startswith("test/")},
        steps=taken,
        seconds=round(metrics.seconds, 2),
    )


def _watch(job: Job) -> WatchAttention | None:
    """What looks at attention, where there is a student to look at, with a teacher or alone."""
    if not isinstance(job.objective, Supervised):
        return None
    picture = job.folder.figures / "attention.png"
    return WatchAttention(job.objective, job.validation, picture, name=job.name, batch=job.evaluation_batch)


def _meet(job: Job) -> None:
    """Wait for the processes that were started together, so that all see what the first made of the folder."""
    together = replace(job.hardware, strategy="ddp")  # there is no network yet that could be shared out
    trainer = _trainer(replace(job, hardware=together), [], epochs=1)
    trainer.strategy.setup_environment()
    trainer.strategy.barrier()


def _trainer(job: Job, callbacks: list[Callback], *, epochs: int) -> L.Trainer:
    arguments = job.hardware.trainer_arguments(job.recipe.precision)
    plugins = [WholeCheckpoints(), *arguments.pop("plugins", [])]
    return L.Trainer(
        **arguments,
        plugins=plugins,
        default_root_dir=job.folder.path,  # in a SLURM job, Lightning looks there for checkpoints of its own
        max_epochs=epochs,
        gradient_clip_val=job.recipe.clip_grad,
        check_val_every_n_epoch=job.recipe.validate_every,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _in_order(images: Images, job: Job) -> DataLoader[tuple[Tensor, ...]]:
    return evaluation_loader(images, job.evaluation_batch, job.process, job.hardware, job.workers)


def _draw_curve(rows: Sequence[Mapping[str, float]], folder: RunFolder, monitor: str, *, title: str) -> None:
    """The monitored value over the epochs, in `figures/curve.png`."""
    points = [(row["epoch"], Point(row[monitor], row[monitor], row[monitor])) for row in rows if monitor in row]
    label = monitor.replace("/", " ")
    figure = learning_curves({title: {label: points}}, ylabel=label, percent=monitor.endswith("accuracy"))
    save(figure, folder.figures / "curve.png")


def _validation_at(rows: Sequence[Mapping[str, float]], epoch: int) -> dict[str, float]:
    row = next(row for row in rows if row["epoch"] == epoch)
    return {key.removeprefix("validation/"): value for key, value in row.items() if key.startswith("validation/")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about devices and small logs, which say nothing about this training."""
    lightning_logs = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [one.level for one in lightning_logs]
    for one in lightning_logs:
        one.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available.*")  # it need not be used
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")
        warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides.*")
        try:
            yield
        finally:
            for one, level in zip(lightning_logs, levels, strict=True):
                one.setLevel(level)
