"""Trained runs put to use: load them, predict with them, average them, export them. And what a model is before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.evaluation.ensemble import Ensemble as Ensemble
    from attention_transfer.evaluation.ensemble import EnsembleResult as EnsembleResult
    from attention_transfer.evaluation.ensemble import Member as Member
    from attention_transfer.evaluation.ensemble import Pair as Pair
    from attention_transfer.evaluation.ensemble import Score as Score
    from attention_transfer.evaluation.export import ExportReport as ExportReport
    from attention_transfer.evaluation.foreground import Looks as Looks
    from attention_transfer.evaluation.foreground import looks as looks
    from attention_transfer.evaluation.network import LoadedRun as LoadedRun
    from attention_transfer.evaluation.network import Network as Network
    from attention_transfer.evaluation.network import load_classifier as load_classifier
    from attention_transfer.evaluation.network import load_run as load_run
    from attention_transfer.evaluation.predictions import Prediction as Prediction
else:
    __all__, __getattr__ = lazily(__name__)
