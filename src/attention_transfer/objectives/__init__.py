"""Objectives: what a training minimises, from a batch to named losses."""

from attention_transfer.objectives.base import Images as Images
from attention_transfer.objectives.base import Objective as Objective
from attention_transfer.objectives.base import ObjectiveOutput as ObjectiveOutput
from attention_transfer.objectives.base import Watch as Watch
from attention_transfer.objectives.masked import MaskedAutoencoder as MaskedAutoencoder
from attention_transfer.objectives.mixing import MixedTargets as MixedTargets
from attention_transfer.objectives.mixing import mix as mix
from attention_transfer.objectives.supervised import Supervised as Supervised
