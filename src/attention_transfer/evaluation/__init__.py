"""Trained runs put to use: load them, predict with them, average them, export them. And what a model is before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.evaluation.artefacts import AttentionReport as AttentionReport
    from attention_transfer.evaluation.artefacts import Finding as Finding
    from attention_transfer.evaluation.artefacts import examine_attention as examine_attention
    from attention_transfer.evaluation.averaging import Ensemble as Ensemble
    from attention_transfer.evaluation.averaging import Score as Score
    from attention_transfer.evaluation.classifier import Classifier as Classifier
    from attention_transfer.evaluation.classifier import LoadedRun as LoadedRun
    from attention_transfer.evaluation.classifier import load_classifier as load_classifier
    from attention_transfer.evaluation.classifier import load_run as load_run
    from attention_transfer.evaluation.corrupt_verb import CorruptedImages as CorruptedImages
    from attention_transfer.evaluation.doctor import Diagnosis as Diagnosis
    from attention_transfer.evaluation.ensemble import EnsembleResult as EnsembleResult
    from attention_transfer.evaluation.ensemble import Member as Member
    from attention_transfer.evaluation.ensemble import Pair as Pair
    from attention_transfer.evaluation.evaluation_result import Evaluation as Evaluation
    from attention_transfer.evaluation.evaluation_result import ModelDifference as ModelDifference
    from attention_transfer.evaluation.evaluation_result import ModelScores as ModelScores
    from attention_transfer.evaluation.export import ExportReport as ExportReport
    from attention_transfer.evaluation.foreground import Looks as Looks
    from attention_transfer.evaluation.foreground import looks as looks
    from attention_transfer.evaluation.frozen import LinearProbe as LinearProbe
    from attention_transfer.evaluation.frozen import frozen_features as frozen_features
    from attention_transfer.evaluation.frozen import linear_probe as linear_probe
    from attention_transfer.evaluation.intervals import Estimate as Estimate
    from attention_transfer.evaluation.intervals import PairedDifference as PairedDifference
    from attention_transfer.evaluation.intervals import bca as bca
    from attention_transfer.evaluation.intervals import mean_difference as mean_difference
    from attention_transfer.evaluation.intervals import paired_difference as paired_difference
    from attention_transfer.evaluation.masks import MaskFiles as MaskFiles
    from attention_transfer.evaluation.metrics import ClassificationScores as ClassificationScores
    from attention_transfer.evaluation.metrics import ImageScores as ImageScores
    from attention_transfer.evaluation.metrics import ReliabilityBin as ReliabilityBin
    from attention_transfer.evaluation.metrics import classification as classification
    from attention_transfer.evaluation.metrics import image_scores as image_scores
    from attention_transfer.evaluation.metrics import reliability as reliability
    from attention_transfer.evaluation.network_similarity import Drift as Drift
    from attention_transfer.evaluation.network_similarity import HeadMatchings as HeadMatchings
    from attention_transfer.evaluation.network_similarity import Similarity as Similarity
    from attention_transfer.evaluation.network_similarity import similarity as similarity
    from attention_transfer.evaluation.predictions import Prediction as Prediction
    from attention_transfer.evaluation.profile import LayerProfile as LayerProfile
    from attention_transfer.evaluation.profile import attention_profile as attention_profile
    from attention_transfer.evaluation.segment_verb import ModelSegmentation as ModelSegmentation
    from attention_transfer.evaluation.segment_verb import SegmentationDifference as SegmentationDifference
    from attention_transfer.evaluation.segment_verb import segmentation_differences as segmentation_differences
    from attention_transfer.evaluation.segmentation import Segmentation as Segmentation
    from attention_transfer.evaluation.segmentation import segment as segment
    from attention_transfer.evaluation.shift import CorruptionError as CorruptionError
    from attention_transfer.evaluation.shift import ShiftDifference as ShiftDifference
    from attention_transfer.evaluation.shift import Shifts as Shifts
    from attention_transfer.evaluation.shift import ShiftScore as ShiftScore
    from attention_transfer.evaluation.throughput import ForwardCost as ForwardCost
    from attention_transfer.evaluation.throughput import forward_cost as forward_cost
    from attention_transfer.evaluation.views import attention_rows as attention_rows
    from attention_transfer.evaluation.views import seen as seen
    from attention_transfer.training.neighbours import knn as knn
else:
    __all__, __getattr__ = lazily(__name__)
