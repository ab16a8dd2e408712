"""The verb `pretrain`: make a teacher from images without labels."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from inspect import signature
from typing import Any

from attention_transfer.arguments import verb
from attention_transfer.data import data_slug, load_data
from attention_transfer.engine.compiler import compiler_problems
from attention_transfer.engine.fit import fit, fit_problems
from attention_transfer.engine.hardware import Device, Devices, Strategy, choose_hardware
from attention_transfer.engine.launchers import this_process
from attention_transfer.engine.loggers import LoggerName
from attention_transfer.engine.recipe import AUTO, Recipe, with_values
from attention_transfer.engine.seeds import seeded
from attention_transfer.engine.training import Training
from attention_transfer.errors import raise_all
from attention_transfer.objectives import MaskedAutoencoder
from attention_transfer.training.defaults import Facts, explained, resolve
from attention_transfer.training.digits import MAE, fits
from attention_transfer.training.inputs import input_problems, inputs_for, keep_overlap
from attention_transfer.training.log import logging_to
from attention_transfer.training.networks import DEFAULT_ARCHITECTURE
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.train import Run
from attention_transfer.training.train_problems import WHERE
from attention_transfer.vit import describe, initialise, load_vit, save_vit, set_drop_path

log = logging.getLogger("attention_transfer")

MAE_RECIPE = Recipe(beta2=0.95)
"""What masked autoencoding has of its own (He et al. 2022)."""

_FLATTERED = "the loss on held-out images may be too low, and the accuracy of students of this teacher too high"


@verb
def pretrain(
    model: str = DEFAULT_ARCHITECTURE,
    *,
    data: str = "digits",
    strict: bool = False,
    mask_ratio: float = 0.75,
    seed: int = 0,
    epochs: int | None = None,
    image_size: int | None = None,
    recipe: Recipe = MAE_RECIPE,
    device: Device = "auto",
    devices: Devices = None,
    nodes: int | None = None,
    strategy: Strategy = "ddp",
    loggers: list[LoggerName] | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Make a teacher by masked autoencoding (MAE) of the training images; their labels are not looked at.

    Args:
        model: architecture, randomly initialised: builtin/vit_digits or timm/<name>.
        data: data set, in the forms of [`load_data`][attention_transfer.data.load_data]; "digits" is embedded. A folder
            of images needs no class folders here.
        strict: refuse damaged image files instead of leaving them out.
        mask_ratio: share of the patches that are hidden.
        seed: of the initial weights, the masks, the order and the augmentation.
        epochs: passes over the images; takes the place of recipe.epochs.
        image_size: input pixels, height and width; default the model's.
        recipe: optimisation settings.
        device: where to compute: auto, cpu, cuda or mps; auto takes GPUs where there are any.
        devices: processes on each machine, one a device; auto takes every GPU; default what the launcher says, or 1.
        nodes: machines; default what torchrun or SLURM says, or 1.
        strategy: of several devices: ddp, each holds the whole network; fsdp, each holds a share of it.
        loggers: where metrics go besides the run's files: tensorboard, wandb, mlflow; default tensorboard.
        out: folder of the run; default runs/teacher-<data>.
        overwrite: replace another run in that folder.

    Returns:
        The folder and the summary of the run; `validation.loss` is the reconstruction loss on held-out images.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    settings = recipe if epochs is None else replace(recipe, epochs=epochs)
    problems = settings.problems() + input_problems(seed, image_size) + compiler_problems(settings, device)
    if not 0 < mask_ratio < 1:
        problems.append(f"mask_ratio is {mask_ratio}; give a share above 0 and below 1")
    for name in ("label_smoothing", "share_drop_path", "balanced"):
        if getattr(settings, name) not in (False, 0, AUTO):
            problems.append(
                f"recipe.{name} has no effect in pre-training, which has no labels and no teacher; leave it out"
            )
    if settings.checkpoint_gradients:
        problems.append(
            "recipe.checkpoint_gradients has no effect in pre-training, which sees few patches; leave it out"
        )
    where: dict[str, Any] = {"device": device, "devices": devices, "nodes": nodes}
    where |= {"strategy": strategy, "loggers": loggers}
    problems += fit_problems(settings, **where)
    raise_all(problems)
    config = {
        "model": model,
        "data": data,
        "strict": strict,
        "mask_ratio": mask_ratio,
        "seed": seed,
        "image_size": image_size,
        "recipe": asdict(settings),
        **where,
        "out": str(out or f"runs/teacher-{data_slug(data)}"),
        "overwrite": False,
    }
    defaults = {name: parameter.default for name, parameter in signature(pretrain).parameters.items()}
    if this_process() == 0:
        RunFolder.checked(config["out"], config, overwrite=overwrite, defaults=defaults)  # before any work
    return _pretrain(config, settings, overwrite=overwrite, defaults=defaults)


def _pretrain(config: dict[str, Any], asked: Recipe, *, overwrite: bool, defaults: dict[str, Any]) -> Run:
    splits = load_data(config["data"], strict=config["strict"], labelled=False)
    with seeded(config["seed"]):
        encoder = load_vit(config["model"], pretrained=False, image_size=config["image_size"])
        initialise(encoder)
        spec = describe(encoder)
        asked = with_values(asked, MAE) if config["data"] == "digits" and fits(encoder) else asked
        facts = Facts(
            start="mae",
            width=spec.width,
            depth=spec.depth,
            images=len(splits.train.labels),
            weights=sum(p.numel() for p in encoder.parameters()),
            device=choose_hardware(*(config[key] for key in WHERE[:4])).device,
        )
        recipe = resolve(asked, facts, spec)
        config = {**config, "recipe": asdict(recipe)}
        raise_all([*recipe.problems(), *fit_problems(recipe, **{key: config[key] for key in WHERE})])
        set_drop_path(encoder, recipe.drop_path)
        mae = MaskedAutoencoder(encoder, mask_ratio=config["mask_ratio"])
    with RunFolder.open(config["out"], config, overwrite=overwrite, defaults=defaults) as folder:
        if folder.finished:
            log.info("teacher: done before, in %s", folder.path)
            return Run(folder.path, folder.summary())
        with logging_to(folder.path / "log.txt"):
            if reasons := explained(asked, recipe, facts):
                log.info("teacher: %s", reasons)
            overlap = keep_overlap(splits, folder, data=config["data"], effect=_FLATTERED)
            images = inputs_for(spec, splits, recipe)
            log.debug("masked autoencoding of %d images by %s", len(splits.train.labels), spec)
            training = Training(
                objective=mae,
                folder=folder.path,
                recipe=recipe,
                train=images.train,
                validation=images.validation,
                prepare=images.prepare,
                seed=config["seed"],
                name="teacher (MAE)",
                **{key: config[key] for key in WHERE},
            )
            fitted = fit(training)
            if this_process() == 0:
                save_vit(encoder, folder.model)
            summary = {
                "model": config["model"],
                "seed": config["seed"],
                "skipped": len(splits.skipped),
                "overlap": overlap,
                "train": {"images": len(splits.train.labels), "steps": fitted.steps, "seconds": fitted.seconds},
                "best_epoch": fitted.best_epoch,
                "validation": {"images": len(splits.validation.labels), **fitted.validation},
            }
            folder.write_json("summary.json", summary)
            log.info(
                "teacher: reconstruction loss %.3f on held-out images (%.3f has learnt nothing) after %.0f s, in %s",
                fitted.validation["loss"],
                fitted.validation["zero"],
                fitted.seconds,
                folder.path,
            )
    return Run(folder.path, summary)
