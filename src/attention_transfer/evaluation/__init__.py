"""Trained runs put to use: load them, predict with them, average them, export them. And what a model is before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.evaluation.averaging import Ensemble as Ensemble
    from attention_transfer.evaluation.averaging import Score as Score
    from attention_transfer.evaluation.classifier import Classifier as Classifier
    from attention_transfer.evaluation.classifier import LoadedRun as LoadedRun
    from attention_transfer.evaluation.classifier import load_classifier as load_classifier
    from attention_transfer.evaluation.classifier import load_run as load_run
    from attention_transfer.evaluation.ensemble import EnsembleResult as EnsembleResult
    from attention_transfer.evaluation.ensemble import Member as Member
    from attention_transfer.evaluation.ensemble import Pair as Pair
    from attention_transfer.evaluation.export import ExportReport as ExportReport
    from attention_transfer.evaluation.foreground import Looks as Looks
    from attention_transfer.evaluation.foreground import looks as looks
    from attention_transfer.evaluation.predictions import Prediction as Prediction

__all__, __getattr__ = lazily(__name__)
