"""Trained runs put to use: load them, predict with them, average them. And what a model is before it is used."""

from attention_transfer.evaluation.doctor import doctor as doctor
from attention_transfer.evaluation.ensemble import Ensemble as Ensemble
from attention_transfer.evaluation.ensemble import EnsembleResult as EnsembleResult
from attention_transfer.evaluation.ensemble import Member as Member
from attention_transfer.evaluation.ensemble import Pair as Pair
from attention_transfer.evaluation.ensemble import Score as Score
from attention_transfer.evaluation.ensemble import ensemble as ensemble
from attention_transfer.evaluation.network import LoadedRun as LoadedRun
from attention_transfer.evaluation.network import Network as Network
from attention_transfer.evaluation.network import load_run as load_run
from attention_transfer.evaluation.predict import Prediction as Prediction
from attention_transfer.evaluation.predict import predict as predict
