"""What a run of `train` is asked for, with what its preset and its folder fill in."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from attention_transfer.config.base import as_data
from attention_transfer.config.presets import Preset
from attention_transfer.config.presets import preset as find_preset
from attention_transfer.config.recipe import Recipe, with_values
from attention_transfer.config.training import Train
from attention_transfer.data import SharedPixels, data_slug
from attention_transfer.errors import raise_all
from attention_transfer.training.digits_recipe import DIGITS, NAME, fits
from attention_transfer.training.networks import trained_network
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.train_problems import train_problems

log = logging.getLogger("attention_transfer")


def asked_of(config: Train) -> Train:
    """What is asked for, with what the preset and the recipe of the digits fill in.

    Raises:
        UserError: it is wrong; every mistake is listed.
    """
    asked, method = filled_in(config), find_preset(config.preset)
    raise_all([*dict.fromkeys(train_problems(asked))])
    if config.data == "digits" and config.preset in DIGITS and fits(trained_network(asked)):
        own = DIGITS[config.preset]
        rules = own.rules(method.rules) if config.rules is None else asked.rules
        asked = replace(asked, rules=rules, recipe=with_values(asked.recipe or Recipe(), own.recipe))
        log.debug("what the recipe leaves open is %s", NAME)
    return asked


def filled_in(config: Train) -> Train:
    """The configuration with what its preset says, and with a folder.

    Raises:
        UserError: there is no such preset.
    """
    method = find_preset(config.preset)
    recipe = config.recipe or method.own_recipe
    labels = f"{config.shots}shot" if config.shots is not None else f"{config.fraction:g}"
    return replace(
        config,
        epochs=None,
        init=config.init or method.init,
        init_parts=list(method.init_parts if config.init_parts is None else config.init_parts),
        trained=list(method.trained if config.trained is None else config.trained),
        rules=list(method.rules if config.rules is None else config.rules),
        tune_teacher=method.tune_teacher if config.tune_teacher is None else config.tune_teacher,
        recipe=recipe if config.epochs is None else replace(recipe, epochs=config.epochs),
        out=str(config.out or f"runs/{config.preset}-{data_slug(config.data)}-{labels}-seed{config.seed}"),
    )


@dataclass(frozen=True)
class AskedRun:
    """A run as it is asked for, with everything filled in but what follows from the images.

    Attributes:
        config: every setting; its recipe is what was asked for.
        overwrite: replace another run in the folder.
        method: the preset.
        shared: where decoded image files are kept for other runs, too.
    """

    config: Train
    overwrite: bool
    method: Preset
    shared: SharedPixels | None = None

    @property
    def name(self) -> str:
        """For the log."""
        return f"{self.config.preset} seed {self.config.seed}"

    @property
    def recipe(self) -> Recipe:
        """What was asked for of the optimisation."""
        return self.config.recipe or Recipe()

    @property
    def before(self) -> dict[str, Any]:
        """What settings were before there was a choice, for runs of earlier versions."""
        parts = {"init_parts": list(self.method.init_parts), "trained": list(self.method.trained)}
        return as_data(Train()) | {"init": self.method.init, "tune_teacher": False} | parts

    def data(self, recipe: Recipe) -> dict[str, Any]:
        """The run's configuration with this recipe, as its `config.yaml` has it."""
        return as_data(replace(self.config, recipe=recipe))

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that can't hold the run.

        Raises:
            UserError: it holds something else.
        """
        data = self.data(recipe)
        RunFolder.checked(str(self.config.out), data, overwrite=self.overwrite, defaults=self.before)
