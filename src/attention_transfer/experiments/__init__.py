"""Comparisons: grids of runs, statistics, figures and the page."""

from attention_transfer.experiments.bench import Cost as Cost
from attention_transfer.experiments.bench import bench as bench
from attention_transfer.experiments.compare import Comparison as Comparison
from attention_transfer.experiments.compare import compare as compare
from attention_transfer.experiments.demo import demo as demo
