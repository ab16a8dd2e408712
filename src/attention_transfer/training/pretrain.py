"""The verb `pretrain`: make a teacher from images without labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from attention_transfer.config.base import as_data
from attention_transfer.config.choices import AUTO
from attention_transfer.config.recipe import Recipe, ResolvedRecipe, with_values
from attention_transfer.config.training import Pretrain
from attention_transfer.data import Splits, data_slug, eval_pixels, load_data
from attention_transfer.engine.compiler import compiler_problems
from attention_transfer.engine.fit import fit, fit_problems
from attention_transfer.engine.hardware import choose_hardware
from attention_transfer.engine.launchers import this_process
from attention_transfer.engine.loading import choose_workers
from attention_transfer.engine.seeds import seeded
from attention_transfer.engine.training import Training
from attention_transfer.errors import UserError, raise_all
from attention_transfer.objectives import MaskedAutoencoder
from attention_transfer.training.defaults import Facts, explained, resolve
from attention_transfer.training.digits_recipe import MAE, fits
from attention_transfer.training.inputs import input_problems, inputs_for, keep_overlap
from attention_transfer.training.log import logging_to
from attention_transfer.training.neighbours import JudgedAutoencoder
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.train import Run
from attention_transfer.vit import ViTSpec, describe, initialise, load_vit, save_vit, set_drop_path

log = logging.getLogger("attention_transfer")

_FLATTERED = "the loss on held-out images may be too low, and the accuracy of students of this teacher too high"


def pretrain_teacher(config: Pretrain) -> Run:
    """The verb `pretrain`."""
    settings = config.recipe if config.epochs is None else replace(config.recipe, epochs=config.epochs)
    raise_all([*dict.fromkeys(config.problems() + _problems(config, settings))])
    out = str(config.out or f"runs/teacher-{data_slug(config.data)}")
    asked = replace(config, epochs=None, recipe=settings, out=out, overwrite=False)
    if this_process() == 0:  # before any work
        RunFolder.checked(out, as_data(asked), overwrite=config.overwrite, defaults=as_data(Pretrain()))
    return _pretrain(asked, overwrite=config.overwrite)


def _problems(config: Pretrain, recipe: Recipe) -> list[str]:
    problems = recipe.problems() + input_problems(config.seed, config.image_size)
    problems += compiler_problems(recipe, config.device)
    if config.knn and config.strategy == "fsdp":
        problems.append(
            "knn needs the whole network on a device, which strategy fsdp cuts in shares; take ddp, or judge the "
            "finished run with the verb evaluate and --frozen knn"
        )
    if not 0 < config.mask_ratio < 1:
        problems.append(f"mask_ratio is {config.mask_ratio}; give a share above 0 and below 1")
    for name in ("label_smoothing", "share_drop_path", "balanced"):
        if getattr(recipe, name) not in (False, 0, AUTO):
            problems.append(
                f"recipe.{name} has no effect in pre-training, which has no labels and no teacher; leave it out"
            )
    if recipe.checkpoint_gradients:
        problems.append(
            "recipe.checkpoint_gradients has no effect in pre-training, which sees few patches; leave it out"
        )
    return problems + fit_problems(recipe, **config.place)


@dataclass(frozen=True)
class _Built:
    """What is pre-trained, with its recipe."""

    encoder: nn.Module
    spec: ViTSpec
    objective: MaskedAutoencoder
    facts: Facts
    asked: Recipe
    recipe: ResolvedRecipe


def _pretrain(config: Pretrain, *, overwrite: bool) -> Run:
    splits = load_data(config.data, strict=config.strict, labelled=False)
    if config.knn and len(splits.classes) < 2:
        raise UserError(
            f"knn needs images of two classes or more, and those of {config.data} have no labels, or one in common; "
            "sort them into a folder for each class, or leave knn out"
        )
    built = _built(config, splits)
    data = as_data(replace(config, recipe=built.recipe))
    with RunFolder.open(str(config.out), data, overwrite=overwrite, defaults=as_data(Pretrain())) as folder:
        if folder.finished:
            log.info("teacher: done before, in %s", folder.path)
            return Run(folder.path, folder.summary())
        with logging_to(folder.path / "log.txt"):
            if reasons := explained(built.asked, built.recipe, built.facts):
                log.info("teacher: %s", reasons)
            summary = _pretrained(config, built, folder, splits)
            folder.write_json("summary.json", summary)
            found, seconds = summary["validation"], summary["train"]["seconds"]
            log.info(
                "teacher: reconstruction loss %.3f on held-out images (%.3f has learnt nothing) after %.0f s, in %s",
                *(found["loss"], found["zero"], seconds, folder.path),
            )
            if config.knn:
                log.info("teacher: k-NN accuracy %.1f %% on held-out images", 100 * found["knn_accuracy"])
    return Run(folder.path, summary)


def _built(config: Pretrain, splits: Splits) -> _Built:
    """The encoder and its objective; what the recipe leaves open follows from them."""
    hardware = choose_hardware(config.device, config.devices, config.nodes, config.strategy)
    with seeded(config.seed):
        encoder = load_vit(config.model, pretrained=False, image_size=config.image_size)
        initialise(encoder)
        spec = describe(encoder)
        asked = with_values(config.recipe, MAE) if config.data == "digits" and fits(encoder) else config.recipe
        facts = Facts(
            start="mae",
            width=spec.width,
            depth=spec.depth,
            images=len(splits.train.labels),
            weights=sum(p.numel() for p in encoder.parameters()),
            device=hardware.device,
        )
        recipe = resolve(asked, facts, spec)
        raise_all([*recipe.problems(), *fit_problems(recipe, **config.place)])
        set_drop_path(encoder, recipe.drop_path)
        objective: MaskedAutoencoder
        if config.knn:
            plain = splits.train.with_transform(eval_pixels(spec))
            workers, _ = choose_workers(plain, recipe.workers, hardware)
            objective = JudgedAutoencoder(encoder, plain, workers=workers, mask_ratio=config.mask_ratio)
        else:
            objective = MaskedAutoencoder(encoder, mask_ratio=config.mask_ratio)
    return _Built(encoder, spec, objective, facts, asked, recipe)


def _pretrained(config: Pretrain, built: _Built, folder: RunFolder, splits: Splits) -> dict[str, Any]:
    """Pre-train into a folder, write the encoder there, and say what came of it."""
    overlap = keep_overlap(splits, folder, data=config.data, effect=_FLATTERED)
    images = inputs_for(built.spec, splits, built.recipe)
    log.debug("masked autoencoding of %d images by %s", len(splits.train.labels), built.spec)
    training = Training(
        objective=built.objective,
        folder=folder.path,
        recipe=built.recipe,
        train=images.train,
        validation=images.validation,
        prepare=images.prepare,
        seed=config.seed,
        name="teacher (MAE)",
        **config.place,
    )
    fitted = fit(training)
    if this_process() == 0:
        save_vit(built.encoder, folder.model)
    return {
        "model": config.model,
        "seed": config.seed,
        "skipped": len(splits.skipped),
        "overlap": overlap,
        "train": {"images": len(splits.train.labels), "steps": fitted.steps, "seconds": fitted.seconds},
        "best_epoch": fitted.best_epoch,
        "validation": {"images": len(splits.validation.labels), **fitted.validation},
    }
