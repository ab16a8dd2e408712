"""The verbs that train, their run folders, and the engine's public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.config.choices import Device as Device
    from attention_transfer.config.files import read_config as read_config
    from attention_transfer.config.recipe import Recipe as Recipe
    from attention_transfer.config.recipe import ResolvedRecipe as ResolvedRecipe
    from attention_transfer.engine.compiler import compiler_problems as compiler_problems
    from attention_transfer.engine.fit import fit as fit
    from attention_transfer.engine.fit import fit_problems as fit_problems
    from attention_transfer.engine.hardware import choose_hardware as choose_hardware
    from attention_transfer.engine.optimiser import parameter_groups as parameter_groups
    from attention_transfer.engine.optimiser import warmup_cosine as warmup_cosine
    from attention_transfer.engine.progress import Display as Display
    from attention_transfer.engine.training import Training as Training
    from attention_transfer.engine.training import TrainingResult as TrainingResult
    from attention_transfer.errors import Interrupted as Interrupted
    from attention_transfer.objectives import Objective as Objective
    from attention_transfer.objectives import ObjectiveOutput as ObjectiveOutput
    from attention_transfer.objectives import Supervised as Supervised
    from attention_transfer.training.card import model_card as model_card
    from attention_transfer.training.inputs import input_problems as input_problems
    from attention_transfer.training.log import logging_to as logging_to
    from attention_transfer.training.run_files import PretrainedConfig as PretrainedConfig
    from attention_transfer.training.run_files import TrainedConfig as TrainedConfig
    from attention_transfer.training.run_files import read_metrics as read_metrics
    from attention_transfer.training.run_folder import RunFolder as RunFolder
    from attention_transfer.training.run_folder import differences as differences
    from attention_transfer.training.train import Run as Run
    from attention_transfer.transfer.rule_data import read_rules as read_rules
else:
    __all__, __getattr__ = lazily(__name__)
