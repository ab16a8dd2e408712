"""The training loop: epochs, batches, micro-batches, step, validation, checkpoint."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attention_transfer.engine import checkpoints
from attention_transfer.engine.distributed import join, replicated, shard, total, whole
from attention_transfer.engine.finite import not_finite
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.loading import evaluation_loader, readable_errors, training_loader
from attention_transfer.engine.loggers import Logger, closing, log_row, make_loggers
from attention_transfer.engine.memory import telling_of_memory
from attention_transfer.engine.metrics import History, Means, Row, Scores, Stopwatch
from attention_transfer.engine.optimiser import (
    AveragedWeights,
    adamw,
    head_parameters,
    set_learning_rate,
    warmup_cosine,
)
from attention_transfer.engine.progress import Bar, Display
from attention_transfer.engine.samplers import SeededSampler, Share, class_weights, share_of_batch
from attention_transfer.engine.stopping import StopRequest
from attention_transfer.engine.training import Training, TrainingResult
from attention_transfer.errors import Interrupted
from attention_transfer.objectives import Images, MixedTargets, mix

log = logging.getLogger("attention_transfer")

Part = tuple[Tensor, Tensor | MixedTargets]


class Loop:
    """One training on this process, from the start or the last checkpoint to the kept weights and their scores.

    Args:
        training: what is to be trained.
        hardware: where.
        workers: processes that load images for this one.
        evaluation_batch: images of a forward pass without gradients.

    Raises:
        UserError: there is a checkpoint that can't be read.
    """

    def __init__(self, training: Training, hardware: Hardware, *, workers: int, evaluation_batch: int) -> None:
        self.training, self.hardware = training, hardware
        self.workers, self.evaluation_batch = workers, evaluation_batch
        self.processes = hardware.processes
        self.place = join(hardware)
        self.main = self.place.rank == 0
        index = self.place.local_rank if hardware.device == "cuda" and self.processes > 1 else None
        self.device = torch.device(hardware.device if index is None else f"{hardware.device}:{index}")
        resumed = checkpoints.newest_checkpoint(training.folder)
        accumulate = max(training.recipe.accumulate, 1 if resumed is None else resumed["accumulate"])
        self.recipe = replace(training.recipe, accumulate=accumulate)
        weights = class_weights(training.train) if self.recipe.balanced else None
        self.sampler = SeededSampler(training.train, seed=training.seed, weights=weights, process=self.place.rank)
        self.loader = training_loader(training.train, self.sampler, self.recipe, hardware, workers)
        self.steps = self.recipe.epochs * len(self.loader)
        self.epoch = self.step_number = 0  # that are done
        self.stop = StopRequest()
        self.loggers: list[Logger] = []
        self.history = History(training.folder / "metrics.jsonl" if self.main else None, training.monitor)
        self._prepare_objective()
        if resumed is not None:
            self._resume(resumed)
        set_learning_rate(self.optimizer, self._rate_factor())

    @property
    def micro_batch(self) -> int:
        """Images a forward pass on one device, at most."""
        return -(-self.recipe.batch_size // (self.processes * self.recipe.accumulate))

    def run(self) -> TrainingResult:
        """Train to the end, then test with the kept weights.

        Raises:
            OutOfMemory: a device has no memory left.
            UserError: the loss is not finite.
            Interrupted: the user stopped the run.
        """
        training, done = self.training, self.step_number
        settings = {"seed": training.seed, **asdict(training.recipe)}
        names = (training.loggers or ()) if self.main else ()
        with self.stop.listening(), Display.open() as display, readable_errors():
            with display.bar(training.name, self.steps, done=done) as bar:
                self.loggers = make_loggers(names, training.folder, training.name, settings=settings, done=done)
                self.history.write()  # only here: loggers look at what was written before
                with closing(self.loggers):
                    while self.epoch < self.recipe.epochs and not self._stops_early():
                        self._run_epoch(bar)
                    self._stop_if_asked()
            seconds = round(self.history.seconds, 2)
            checkpoints.load_weights(
                checkpoints.read_checkpoint(checkpoints.best_checkpoint(training.folder)), self.objective
            )
            tested = {} if training.test is None else self._evaluate(training.test)
            self._stop_if_asked()
        best = self.history.best
        assert best is not None
        if self.main:
            self.history.draw(training.folder / "figures" / "curve.png", title=training.name)
        if not self.hardware.sharded:
            self.objective.cpu()
        validation = {n.removeprefix("validation/"): v for n, v in best.items() if n.startswith("validation/")}
        return TrainingResult(int(best["epoch"]), validation, tested, self.step_number, seconds)

    def _run_epoch(self, bar: Bar) -> None:
        """Train for an epoch, validate if it is time to, and keep what came of it."""
        means, clock = self._train(bar)
        self.epoch += 1
        validates = self.epoch % self.recipe.validate_every == 0
        scores, agreement = self._validate() if validates else ({}, {})
        row = {
            **{"epoch": self.epoch, "step": self.step_number},
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **{f"train/{name}": value for name, value in means.compute(self.processes).items()},
            **{f"validation/{name}": value for name, value in scores.items()},
            **{f"time/{name}": value for name, value in clock.values().items()},
            **agreement,
        }
        self.history.add(row)
        log_row(self.loggers, row)
        bar.note(self.history.note())
        if validates:
            self._save()

    def _train(self, bar: Bar) -> tuple[Means, Stopwatch]:
        """An epoch's steps; the means of their losses, and the times."""
        self.sampler.set_epoch(self.epoch)
        self.objective.train()
        self.prepare.train()
        means, clock, images_in_all = Means(), Stopwatch(self.processes), len(self.sampler)
        for number, (pixels, targets) in enumerate(self.loader):
            clock.batch_is_here()
            size = {"images": images_in_all, "batch_size": self.recipe.batch_size}
            share = share_of_batch(number, **size, process=self.place.rank, processes=self.processes)
            with telling_of_memory(evaluating=False):
                self._step(*self._on_device(pixels, targets), share, means)
            clock.step_is_done(len(pixels))
            bar.advance()
        return means, clock

    def _step(self, images: Tensor, targets: Tensor, share: Share, means: Means) -> None:
        """One optimiser step, on this process's share of a batch, in micro-batches.

        Raises:
            UserError: the loss or its gradient is not finite. The weights are as they were before the step.
            Interrupted: the user asks to stop.
        """
        self.objective.advance(self.step_number / self.steps)
        self.optimizer.zero_grad()
        seen: dict[str, list[Tensor]] = {}
        parts = self._micro_batches(images, targets)
        for number, (inputs, labels) in enumerate(parts, start=1):
            with self._gradients_stay_here(number < len(parts)):
                with self._autocast():
                    output = self.model(inputs, labels)
                # A part's share of the batch's loss, so that the mean over processes of their sums is that loss.
                counted = len(inputs) if share.own else 0
                loss = output.loss * (counted * self.processes / share.whole)
                self.scaler.scale(loss).backward()
            values = {**output.losses, "loss": output.loss}
            means.add(values, counted)
            for name, value in values.items() if counted else ():
                seen.setdefault(name, []).append(value.detach())
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self._check(seen, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_number += 1
        set_learning_rate(self.optimizer, self._rate_factor())
        self.average.update()
        if self.processes > 1 and self.step_number == 1:  # e.g. heads that were matched on a process's own images
            for buffer in self.objective.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.recipe.precision != "fp16" or norm.isfinite():  # a scaled loss may have skipped the step
            means.add({"grad_norm": norm}, 1)

    def _micro_batches(self, images: Tensor, targets: Tensor) -> list[Part]:
        """A batch, mixed as a whole if the objective says so, in parts of so many images as fit in memory."""
        size = self.micro_batch
        if self.objective.mixing is None:
            return list(zip(images.split(size), targets.split(size), strict=True))
        mixed, labels = mix(images, targets, self.objective.mixing)
        return list(zip(mixed.split(size), labels.split(size), strict=True))

    def _clip(self) -> Tensor:
        """The norm of all gradients, before it is clipped; in the first epochs only those of the head are left."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.epoch < self.recipe.head_epochs:
            heads = head_parameters(self.objective.vit)
            for parameter in parameters:
                if parameter not in heads:
                    parameter.grad = None
        if self.recipe.clip_grad is not None:
            return whole(nn.utils.clip_grad_norm_(parameters, self.recipe.clip_grad))
        return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def _check(self, seen: dict[str, list[Tensor]], norm: Tensor) -> None:
        """Stop before a step that is not finite, or that the user does not want, in all processes at once."""
        if self.recipe.precision != "fp16":  # there, an infinite gradient is how the loss's scale is found
            seen["gradient norm"] = [norm]
        # A process may have no image of a batch, and takes part all the same.
        decisive = torch.stack([torch.zeros_like(norm), *seen.get("loss", []), *seen.get("gradient norm", [])])
        broken = (~decisive.isfinite()).any()
        asked = torch.full_like(broken, self.stop.requested)
        broken, asked = total(torch.stack([broken, asked]).int(), self.processes)
        if broken:
            raise not_finite(seen, self.processes, epoch=self.epoch + 1, step=self.step_number + 1)
        if asked:
            raise Interrupted

    @torch.no_grad()
    def _validate(self) -> tuple[Row, Row]:
        """Scores on the validation split, and what the objective watches, with the weights that are to be kept."""
        self.objective.eval()
        self.prepare.eval()
        with self.average.applied():
            agreement = {}
            # Sharded weights need all processes that hold them.
            if self.watch is not None and (self.main or self.hardware.sharded):
                with telling_of_memory(evaluating=True), self._autocast():
                    agreement = self.watch(self.prepare)
            return self._evaluate(self.training.validation), agreement

    @torch.no_grad()
    def _evaluate(self, images: Images) -> Row:
        """Scores over all images of a split, each once, whatever the number of processes."""
        self.objective.eval()
        self.prepare.eval()
        scores = Scores(self.device, labelled=self.training.classes is not None)
        rank, hardware = self.place.rank, self.hardware
        for batch in evaluation_loader(images, self.evaluation_batch, rank, hardware, self.workers):
            with telling_of_memory(evaluating=True):
                inputs, targets = self._on_device(*batch)
                with self._autocast():
                    output = self.forward(inputs, targets)
                    scores.add({"loss": output.loss, **output.losses}, output.logits, targets)
            if self.processes == 1:  # others would wait for this one
                self._stop_if_asked()
        return scores.compute(self.processes)

    def _stop_if_asked(self) -> None:
        """Stop where any process was asked to.

        Raises:
            Interrupted: one was.
        """
        if total(torch.tensor(int(self.stop.requested), device=self.device), self.processes):
            raise Interrupted

    def _stops_early(self) -> bool:
        """Whether too many validations in a row were not better than the best."""
        patience = self.recipe.early_stopping
        return patience is not None and self.history.validations_since_best >= patience

    def _prepare_objective(self) -> None:
        """Put what is trained on the device, replicated or sharded, and make what trains it."""
        training, recipe, objective = self.training, self.recipe, self.training.objective
        if self.hardware.sharded:
            shard(objective, self.hardware)
        self.objective = objective.to(self.device)
        self.prepare = (training.prepare or nn.Identity()).to(self.device)
        self.forward = cast(nn.Module, torch.compile(objective)) if recipe.compile else objective
        copied = self.processes > 1 and not self.hardware.sharded
        self.model = replicated(self.forward, self.device) if copied else self.forward
        self.optimizer = adamw(objective, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.average = AveragedWeights(objective, recipe.ema_decay)
        picture = training.folder / "figures" / "attention.png" if self.main else None
        self.watch = objective.watch(training.validation, picture, name=training.name, batch_size=self.evaluation_batch)

    def _resume(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue after the epoch of a checkpoint."""
        checkpoints.restore(checkpoint, self.objective, self.optimizer, self.average)
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.epoch, self.step_number = checkpoint["epoch"], checkpoint["step"]
        self.history.resume(checkpoint["rows"], checkpoint["seconds"])
        log.info("%s: resumed after step %d of %d", self.training.name, self.step_number, self.steps)

    def _save(self) -> None:
        """Write the last checkpoint, and before it the best one if this validation was better than all before.

        If the process dies in between, this epoch is done again, and the same is written once more.
        """
        state = checkpoints.state_of(self.objective, self.optimizer, self.average)
        if self.main:
            checkpoint: checkpoints.Checkpoint = {
                **state,
                "epoch": self.epoch,
                "step": self.step_number,
                "scaler": self.scaler.state_dict(),
                "accumulate": self.recipe.accumulate,
                "seconds": self.history.seconds,
                "rows": self.history.rows,
            }
            if self.recipe.keep_epochs:
                checkpoints.write_weights(checkpoint, checkpoints.epoch_checkpoint(self.training.folder, self.epoch))
            if self.history.best is self.history.rows[-1]:
                checkpoints.write_checkpoint(checkpoint, checkpoints.best_checkpoint(self.training.folder))
            checkpoints.write_checkpoint(checkpoint, checkpoints.last_checkpoint(self.training.folder))
        if self.processes > 1:
            torch.distributed.barrier()

    def _on_device(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, prepared there, to which a quarter of the bytes have travelled."""
        return self.prepare(pixels.to(self.device, non_blocking=True)), targets.to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[object]:
        """The numbers of a forward pass."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        precision = self.recipe.precision
        return torch.autocast(self.device.type, kinds[precision]) if precision in kinds else nullcontext()

    def _gradients_stay_here(self, here: bool) -> AbstractContextManager[object]:
        """Leave a micro-batch's gradients in this process, as they are averaged along with those of the last one."""
        return self.model.no_sync() if here and isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _rate_factor(self) -> float:
        """The share of the peak learning rate for the next step."""
        recipe, warmup = self.recipe, round(self.recipe.warmup * self.steps)
        return warmup_cosine(self.step_number, steps=self.steps, warmup=warmup, floor=recipe.min_lr)
