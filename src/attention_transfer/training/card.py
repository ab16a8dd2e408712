"""The model card: what a trained model is, how it was made, how good it is, and how to load it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from scipy import stats

from attention_transfer.config.recipe import Recipe
from attention_transfer.training.run_files import TrainedConfig
from attention_transfer.transfer import PRESETS, OperandRule, Rule
from attention_transfer.transfer.rule_data import read_rules
from attention_transfer.vit import ViTSpec
from attention_transfer.vit.libraries import find_library, library_names

Form = Literal["run", "timm", "hf", "onnx"]
"""The folder that the card lies in: a run's `model/`, or an exported model in one of these formats."""

_SHOWN_CLASSES = 50
_ALWAYS = ("epochs", "batch_size", "lr")  # recipe values that everyone asks for, also where they are the defaults
_NEVER = ("workers",)  # these say how fast a model was trained, not how
_MEASURES = {
    "cross_entropy": ("cross-entropy, nats", "{:.3f}"),
    "calibration_error": ("expected calibration error (15 bins), %", "{:.1%}"),
    "balanced_accuracy": ("mean accuracy of the classes, %", "{:.1%}"),
}


@dataclass(frozen=True)
class _Bound:
    """A rule in words."""

    name: str
    summary: str
    settings: str
    copies: bool


def model_card(
    config: TrainedConfig,
    summary: Mapping[str, Any],
    spec: ViTSpec,
    classes: Sequence[str],
    *,
    form: Form = "run",
    checks: Sequence[str] = (),
    repair: str | None = None,
) -> str:
    """The card of a run of `train`, as Markdown with the YAML head that the Hugging Face Hub reads.

    Args:
        config: what the run's `config.yaml` says.
        summary: the content of its `summary.json`.
        spec: the student.
        classes: class names.
        form: what the card lies in.
        checks: what was measured when the model was exported, a sentence each.
        repair: what was repaired in the teacher, in words, where that was asked for.
    """
    method = PRESETS.get(config.preset)
    rules = [_bound(rule) for rule in read_rules(config.rules)]
    splits = {name: summary[name] for name in ("validation", "test") if summary.get(name)}
    overlap = summary.get("overlap") or {}  # not looked for in archives, nor by earlier versions
    template = files("attention_transfer.training").joinpath("card.md.jinja").read_text(encoding="utf-8")
    page = Environment(
        autoescape=False,  # the card is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return page.from_string(template).render(
        head=_head(config, summary, spec, form) + "\n",
        name=_name(config),
        config=config,
        teacher=_shown(config.teacher),
        data=_shown(config.data),
        method=method,
        rules=rules,
        copies=any(rule.copies for rule in rules),
        summary=summary,
        spec=spec,
        classes=", ".join(classes[:_SHOWN_CLASSES]),
        more_classes=max(0, len(classes) - _SHOWN_CLASSES),
        labels=_labels(config, summary),
        recipe=_recipe(config.recipe),
        rows=[row for name, values in splits.items() for row in _rows(name, values, overlap.get(name, 0))],
        form=form,
        checks=checks,
        repair=repair,
    )


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval (Wilson) of an accuracy in [0, 1] that was measured on so many images."""
    found = stats.binomtest(round(accuracy * images), images).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)


def _name(config: TrainedConfig) -> str:
    return f"{config.preset}, {Path(config.data).name}, seed {config.seed}"


def _shown(source: str | None) -> str | None:
    """A teacher or a data set; only the name of a folder on this machine, since cards are passed on."""
    return Path(source).name if source is not None and Path(source).is_absolute() else source


def _head(config: TrainedConfig, summary: Mapping[str, Any], spec: ViTSpec, form: Form) -> str:
    """The metadata that the Hub reads, in YAML."""
    data = Path(config.data).name
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=round(float(accuracy), 4),
        )
        for accuracy in [(summary.get("test") or {}).get("accuracy")]
        if accuracy
    ]
    return ModelCardData(
        library_name="onnx" if form == "onnx" else find_library("hf" if form == "hf" else spec.library).hub_name,
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "attention-transfer", config.preset],
        metrics=["accuracy"],
        base_model=_published(config.teacher),
        model_name=_name(config) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _published(teacher: str | None) -> str | None:
    """The teacher's name on the Hub, if it is there."""
    if teacher is None or Path(teacher).exists():
        return None
    source, _, name = teacher.partition("/")
    if not name or source not in library_names():
        return None
    library = find_library(source)
    return None if library.folders and name.startswith(library.folders) else library.published(name)


def _bound(rule: Rule) -> _Bound:
    """The first sentence of the rule's docstring, and the settings that differ from its defaults."""
    summary = (inspect.getdoc(type(rule)) or "").partition("\n")[0]
    defaults = {f.name: f.default for f in fields(rule) if f.default is not MISSING}
    chosen = {
        name: value
        for name, value in asdict(rule).items()
        if name == "weight" or name not in defaults or value != defaults[name]
    }
    settings = ", ".join(f"{name} = {value}" for name, value in chosen.items())
    return _Bound(type(rule).__name__, summary, settings, isinstance(rule, OperandRule))


def _labels(config: TrainedConfig, summary: Mapping[str, Any]) -> str:
    images = f"{summary['train']['images']:,} labelled images"
    if config.shots:
        return f"{images}, {config.shots} of each class"
    if config.fraction < 1:
        return f"{images}, {100 * config.fraction:g} % of each class"
    return f"{images}, all of the training split"


def _recipe(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values that differ from the defaults, and those that everyone asks for."""
    defaults = {**asdict(Recipe()), **{name: settings.get(name) for name in _NEVER}}
    return [(k, v) for k, v in settings.items() if k in _ALWAYS or k not in defaults or v != defaults[k]]


def _rows(split: str, values: Mapping[str, Any], trained: int) -> list[tuple[str, str, str]]:
    """Rows for one split: its name and size, a measure, and the value; and how many of its images were trained on."""
    images = int(values["images"])
    where = f"{split} ({images:,} images)"
    rows = []
    if (accuracy := values.get("accuracy")) is not None:
        low, high = interval(float(accuracy), images)
        rows.append((where, "accuracy, % (95 % interval)", f"{accuracy:.1%} ({low:.1%} to {high:.1%})"))
    rows += [
        (where, name, form.format(values[key]))
        for key, (name, form) in _MEASURES.items()
        if values.get(key) is not None
    ]
    if trained:
        rows.append((where, "of these, also trained on: the values above may be too good", f"{trained:,}"))
    return [(where, name, value.replace("%", "")) for where, name, value in rows]
