"""The engine: a typed recipe, one Lightning module for every objective, run folders, and the verbs that train."""

from attention_transfer.training.callbacks import Interrupted as Interrupted
from attention_transfer.training.callbacks import read_metrics as read_metrics
from attention_transfer.training.configuration import read_config as read_config
from attention_transfer.training.configuration import read_rules as read_rules
from attention_transfer.training.configuration import rule_config as rule_config
from attention_transfer.training.engine import Fitted as Fitted
from attention_transfer.training.engine import fit as fit
from attention_transfer.training.log import logging_to as logging_to
from attention_transfer.training.module import ObjectiveModule as ObjectiveModule
from attention_transfer.training.module import parameter_groups as parameter_groups
from attention_transfer.training.module import warmup_cosine as warmup_cosine
from attention_transfer.training.objective import Objective as Objective
from attention_transfer.training.objective import StepOutput as StepOutput
from attention_transfer.training.objective import Supervised as Supervised
from attention_transfer.training.presets import presets as presets
from attention_transfer.training.pretrain import pretrain as pretrain
from attention_transfer.training.progress import Display as Display
from attention_transfer.training.progress import console as console
from attention_transfer.training.recipe import Recipe as Recipe
from attention_transfer.training.run_folder import RunFolder as RunFolder
from attention_transfer.training.run_folder import check_writable as check_writable
from attention_transfer.training.run_folder import differences as differences
from attention_transfer.training.run_folder import read_yaml as read_yaml
from attention_transfer.training.run_folder import write_whole as write_whole
from attention_transfer.training.train import Run as Run
from attention_transfer.training.train import train as train
