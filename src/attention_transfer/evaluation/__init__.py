"""Trained runs put to use: load them, predict with them, average them, export them. And what a model is before that."""

from attention_transfer.evaluation.doctor import doctor as doctor
from attention_transfer.evaluation.ensemble import Ensemble as Ensemble
from attention_transfer.evaluation.ensemble import EnsembleResult as EnsembleResult
from attention_transfer.evaluation.ensemble import Member as Member
from attention_transfer.evaluation.ensemble import Pair as Pair
from attention_transfer.evaluation.ensemble import Score as Score
from attention_transfer.evaluation.ensemble import ensemble as ensemble
from attention_transfer.evaluation.export import ExportReport as ExportReport
from attention_transfer.evaluation.export import export as export
from attention_transfer.evaluation.foreground import Looks as Looks
from attention_transfer.evaluation.foreground import foreground as foreground
from attention_transfer.evaluation.foreground import looks as looks
from attention_transfer.evaluation.network import LoadedRun as LoadedRun
from attention_transfer.evaluation.network import Network as Network
from attention_transfer.evaluation.network import load_classifier as load_classifier
from attention_transfer.evaluation.network import load_run as load_run
from attention_transfer.evaluation.predict import predict as predict
from attention_transfer.evaluation.predictions import Prediction as Prediction
from attention_transfer.evaluation.profile import LayerProfile as LayerProfile
from attention_transfer.evaluation.profile import attention_profile as attention_profile
from attention_transfer.evaluation.similarity import HeadMatchings as HeadMatchings
from attention_transfer.evaluation.similarity import Similarity as Similarity
from attention_transfer.evaluation.similarity import similarity as similarity
