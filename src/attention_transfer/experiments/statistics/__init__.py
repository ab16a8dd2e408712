"""Which method is better, and how sure that is: paired over seeds, in [0, 1] where values are accuracies.

Every function takes a method's runs as a mapping from the seed to the value. Nothing here loads torch.
"""

from attention_transfer.experiments.statistics.differences import (
    DECIDING_SEEDS,
    Difference,
    Runs,
    Verdict,
    against,
    judged,
    leading,
    paired,
)
from attention_transfer.experiments.statistics.equal_labels import EqualLabels, equal_labels
from attention_transfer.experiments.statistics.intervals import Interval, gap_recovered, mean_interval
from attention_transfer.experiments.statistics.sentences import equal_labels_text, leading_text, more_text, sentence
from attention_transfer.experiments.statistics.sequential import MOST_SEEDS, Sequential, until_sure

__all__ = [
    "DECIDING_SEEDS",
    "MOST_SEEDS",
    "Difference",
    "EqualLabels",
    "Interval",
    "Runs",
    "Sequential",
    "Verdict",
    "against",
    "equal_labels",
    "equal_labels_text",
    "gap_recovered",
    "judged",
    "leading",
    "leading_text",
    "mean_interval",
    "more_text",
    "paired",
    "sentence",
    "until_sure",
]
