"""Transfer the attention of a pre-trained vision transformer: copy it, distil it, or be guided by it.

Everything is loaded when it is first used: the library for a training loop of one's own (`capture`,
`AttentionTransfer`, the rules, the losses) loads torch, and timm when a model is first met; the verbs (`train`,
`compare`, `predict`, `export` and others) the rest when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

__all__: list[str]

if TYPE_CHECKING:
    from attention_transfer.attention import attention_cross_entropy as attention_cross_entropy
    from attention_transfer.attention import attention_js as attention_js
    from attention_transfer.attention import attention_kl as attention_kl
    from attention_transfer.attention import attention_logits as attention_logits
    from attention_transfer.attention import attention_maps as attention_maps
    from attention_transfer.attention import attention_mse as attention_mse
    from attention_transfer.attention import choose_impl as choose_impl
    from attention_transfer.attention import class_logits as class_logits
    from attention_transfer.attention import distilled_attention as distilled_attention
    from attention_transfer.attention import frozen_attention as frozen_attention
    from attention_transfer.attention import logit_l2 as logit_l2
    from attention_transfer.attention import output_l2 as output_l2
    from attention_transfer.config.base import Config as Config
    from attention_transfer.config.presets import PRESETS as PRESETS
    from attention_transfer.config.presets import Preset as Preset
    from attention_transfer.config.recipe import Recipe as Recipe
    from attention_transfer.config.training import Train as Train
    from attention_transfer.errors import UserError as UserError
    from attention_transfer.evaluation import Ensemble as Ensemble
    from attention_transfer.evaluation import load_classifier as load_classifier
    from attention_transfer.evaluation import load_run as load_run
    from attention_transfer.training import Run as Run
    from attention_transfer.transfer import BSS as BSS
    from attention_transfer.transfer import L2SP as L2SP
    from attention_transfer.transfer import AttentionRule as AttentionRule
    from attention_transfer.transfer import AttentionTransfer as AttentionTransfer
    from attention_transfer.transfer import Copy as Copy
    from attention_transfer.transfer import Distill as Distill
    from attention_transfer.transfer import FeatureKD as FeatureKD
    from attention_transfer.transfer import Guide as Guide
    from attention_transfer.transfer import JointLossRule as JointLossRule
    from attention_transfer.transfer import LogitKD as LogitKD
    from attention_transfer.transfer import LossRule as LossRule
    from attention_transfer.transfer import NetworkRule as NetworkRule
    from attention_transfer.transfer import OperandRule as OperandRule
    from attention_transfer.transfer import Rule as Rule
    from attention_transfer.transfer import Seen as Seen
    from attention_transfer.transfer import TransferOutput as TransferOutput
    from attention_transfer.verbs import Verb as Verb
    from attention_transfer.verbs import verb as verb
    from attention_transfer.verbs.bench import bench as bench
    from attention_transfer.verbs.compare import compare as compare
    from attention_transfer.verbs.corrupt import corrupt as corrupt
    from attention_transfer.verbs.data import inspect_data as inspect_data
    from attention_transfer.verbs.demo import demo as demo
    from attention_transfer.verbs.doctor import doctor as doctor
    from attention_transfer.verbs.ensemble import ensemble as ensemble
    from attention_transfer.verbs.evaluate import evaluate as evaluate
    from attention_transfer.verbs.explore import explore as explore
    from attention_transfer.verbs.export import export as export
    from attention_transfer.verbs.predict import predict as predict
    from attention_transfer.verbs.presets import presets as presets
    from attention_transfer.verbs.pretrain import pretrain as pretrain
    from attention_transfer.verbs.runs import runs as runs
    from attention_transfer.verbs.segment import segment as segment
    from attention_transfer.verbs.show import show as show
    from attention_transfer.verbs.similarity import similarity as similarity
    from attention_transfer.verbs.status import status as status
    from attention_transfer.verbs.sweep import sweep as sweep
    from attention_transfer.verbs.train import train as train
    from attention_transfer.vit import AttentionCall as AttentionCall
    from attention_transfer.vit import AttentionProbe as AttentionProbe
    from attention_transfer.vit import Difference as Difference
    from attention_transfer.vit import Pairing as Pairing
    from attention_transfer.vit import Tokens as Tokens
    from attention_transfer.vit import TransferReport as TransferReport
    from attention_transfer.vit import ViTSpec as ViTSpec
    from attention_transfer.vit import capture as capture
    from attention_transfer.vit import check_transfer as check_transfer
    from attention_transfer.vit import describe as describe
    from attention_transfer.vit import load_vit as load_vit
    from attention_transfer.vit import relevance as relevance
    from attention_transfer.vit import rollout as rollout
    from attention_transfer.vit import student_from as student_from
    from attention_transfer.vit import student_like as student_like
else:
    __all__, __getattr__ = lazily(__name__)
