"""The verbs: each is one object, a typed configuration and a function of it, callable from Python and by name.

Another package registers a verb by an entry point, whose name is the verb's:

    [project.entry-points."attention_transfer.verbs"]
    hello = "my_package.hello:hello"

Nothing heavy is loaded before a verb is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from attention_transfer.config.base import Config, checked
from attention_transfer.config.corrupt import Corrupt
from attention_transfer.config.explore import Explore
from attention_transfer.config.presets import PRESETS, Preset
from attention_transfer.config.presets import of_other_packages as presets_of_other_packages
from attention_transfer.config.runs import ListRuns
from attention_transfer.config.show import Show
from attention_transfer.config.studies import Status, Sweep
from attention_transfer.config.training import Compare, Pretrain, Train
from attention_transfer.config.values import short
from attention_transfer.config.verbs import (
    Demo,
    Doctor,
    Evaluate,
    Export,
    InspectData,
    MakeEnsemble,
    MeasureCost,
    MeasureSimilarity,
    NoSettings,
    Predict,
    Segment,
)
from attention_transfer.errors import UserError, nearest, raise_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attention_transfer.data import DataReport
    from attention_transfer.evaluation import (
        CorruptedImages,
        Diagnosis,
        EnsembleResult,
        Evaluation,
        ExportReport,
        ModelSegmentation,
        Prediction,
        Similarity,
    )
    from attention_transfer.experiments import Comparison, Cost, RunDifference, RunRecord, StudyStatus, SweepResult
    from attention_transfer.explorer import ExplorerWidget
    from attention_transfer.training import Run

GROUP = "attention_transfer.verbs"

_TRAIN = ("torchmetrics", "tensorboard", "sklearn", "matplotlib", "jinja2", "optuna")
EXTRAS = {"train": _TRAIN, "explore": (*_TRAIN, "starlette", "uvicorn", "anywidget")}
"""By the name of an extra, the packages that it brings, as they are imported."""

P = ParamSpec("P")
C = TypeVar("C", bound=Config)
R = TypeVar("R")


class Verb(Generic[P, R]):
    """A function of a configuration, which is called by the configuration's fields.

    Args:
        config: the configuration, a frozen dataclass.
        body: what the verb does; its docstring is the verb's help.
        name: on the command line.
        words: fields that are given there without a flag, in order.
        resumes: whether the same command, given again, goes on where it was stopped.
        lists: whether the function itself raises the configuration's problems, together with those that it finds.
        extra: what is to be installed for it besides the library: "train" for `attention-transfer[train]`.
    """

    def __init__(
        self,
        config: Callable[P, C],
        body: Callable[[C], R],
        *,
        name: str,
        words: tuple[str, ...] = (),
        resumes: bool = False,
        lists: bool = False,
        extra: str = "",
    ) -> None:
        self.config: type[Config] = config  # type: ignore[assignment] # a class is called by its fields, as P says
        self.body, self.name, self.words, self.resumes = body, name, words, resumes
        self.lists, self.extra = lists, extra
        self.__name__, self.__doc__, self.__wrapped__ = body.__name__, inspect.getdoc(body), body
        self.__signature__ = inspect.signature(config).replace(return_annotation=body.__annotations__["return"])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the verb by the fields of its configuration.

        Raises:
            UserError: a value is wrong; every mistake is listed.
        """
        return self.run(self.config(*args, **kwargs))

    def run(self, config: Config) -> R:
        """Call the verb with a configuration.

        Raises:
            UserError: a value is wrong, or packages are missing; every mistake is listed.
        """
        if missing := [name for name in EXTRAS.get(self.extra, ()) if find_spec(name) is None]:
            raise UserError(
                f"{self.name} needs packages that are not installed ({', '.join(missing)}); "
                f'run: pip install "attention-transfer[{self.extra}]"'
            )
        config = checked(config)
        raise_all([] if self.lists else config.problems())
        return self.body(config)  # type: ignore[arg-type] # of this verb

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return str(self.__doc__).split("\n", 1)[0]


def verb(
    config: Callable[P, C],
    *,
    name: str = "",
    words: tuple[str, ...] = (),
    resumes: bool = False,
    lists: bool = False,
    extra: str = "",
) -> Callable[[Callable[[C], R]], Verb[P, R]]:
    """Make a function of a configuration a verb; see `Verb`."""

    def made(body: Callable[[C], R]) -> Verb[P, R]:
        chosen = name or body.__name__
        return Verb(config, body, name=chosen, words=words, resumes=resumes, lists=lists, extra=extra)

    return made


@verb(Demo, resumes=True, extra="train")
def demo(config: Demo) -> list[Comparison]:
    """Show what attention transfer does, on photographs: methods learn to read signs from few labels.

    The teacher has learnt to read printed characters; the students learn handwritten digits. Needs no network and no
    GPU. Shows a table, writes figures and a page, and says what to try next. A demo that was interrupted goes on by the
    same command.

    Returns:
        The comparison, with a row for each run; two of them for full.

    Raises:
        UserError: both quick and full are asked for, or the folder can't be used.
    """
    from attention_transfer.experiments.demo import show_demo

    return show_demo(config)


@verb(InspectData, name="data", words=("path",), extra="train")
def inspect_data(config: InspectData) -> DataReport:
    """Say what a data set holds and what is wrong with it; every image is decoded.

    Prints the classes, the splits and how they were made, sizes and modes, damaged files, and pictures that are in
    several splits, which would make the reported accuracy too high, or in several classes.

    Returns:
        The report.

    Raises:
        UserError: the data set can't be loaded; or, with `strict`, images are damaged, and each is named.
    """
    from attention_transfer.data.check import report_of

    return report_of(config)


@verb(Pretrain, resumes=True, lists=True, extra="train")
def pretrain(config: Pretrain) -> Run:
    """Make a teacher by masked autoencoding (MAE) of the training images; their labels are not looked at.

    A folder of images needs no class folders here.

    Returns:
        The folder and the summary of the run; `validation.loss` is the reconstruction loss on held-out images.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.training.pretrain import pretrain_teacher

    return pretrain_teacher(config)


@verb(Train, resumes=True, lists=True, extra="train")
def train(config: Train) -> Run:
    """Train one student by one method.

    An unfinished run of the same configuration in `out` is resumed; a finished one is returned as it is.

    Returns:
        The folder and the summary of the run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.training.train import train_student

    return train_student(config)


@verb(Compare, resumes=True, extra="train")
def compare(config: Compare) -> Comparison:
    """Compare methods over seeds, amounts of labels and any other settings of train.

    Runs that are in the folder already are not run again, so that an interrupted comparison goes on by the same
    command, and one can be extended by more presets, seeds or labels. Where no teacher is named, one is pre-trained on
    the same images, in out/teacher.

    Returns:
        The folder and a row for each run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.experiments.compare import compare_methods

    return compare_methods(config)


@verb(Sweep, resumes=True, extra="train")
def sweep(config: Sweep) -> SweepResult:
    """Find the settings that a method needs, on validation, and test them once on fresh seeds against the defaults.

    Settings are searched by TPE, each over several seeds; Wilcoxon's test gives up what is worse than the best. A sweep
    that was interrupted goes on by the same command. Writes every configuration (curve.csv), a figure and a sentence.

    Returns:
        The folder, and for each amount of labels the best settings and how far they differ from the defaults.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.experiments.sweep import sweep_settings

    return sweep_settings(config)


@verb(Status, words=("folder",), extra="train")
def status(config: Status) -> StudyStatus:
    """Say what of a comparison or a sweep runs where, since when, what waits or failed, and how long the rest takes.

    Returns:
        The runs with their states, and the time that is left.

    Raises:
        UserError: the folder holds no study, or its storage can't be reached.
    """
    from attention_transfer.experiments.status import study_status

    return study_status(config)


@verb(Predict, words=("run", "images"), lists=True, extra="train")
def predict(config: Predict) -> list[Prediction]:
    """Classify images with a trained run.

    Images are turned upright, and brought to the channels, size and normalisation of the model. A file that is named
    must be readable; of folders and patterns, those that are not are left out and listed at the end.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        UserError: the run can't be loaded, or images that were named can't be read (each is named); nothing was
            written.
        OSError: the disk is full, or alike; no half of a file is left, and the same command can be given again.
    """
    from attention_transfer.evaluation.predict import predict_images

    return predict_images(config)


@verb(Export, words=("run",), lists=True, extra="train")
def export(config: Export) -> ExportReport:
    """Write a trained run as a model that other programs load, and check that it answers as the run does.

    Returns:
        Where it is, and how far its logits are from the run's.

    Raises:
        UserError: the run can't be loaded or can't be written in that format, or the exported model answers
            otherwise than the run; nothing is left behind.
        OSError: the disk is full, or alike; nothing is left behind either, and an exported model that is there stays.
    """
    from attention_transfer.evaluation.export import export_run

    return export_run(config)


@verb(MakeEnsemble, words=("runs",), lists=True, extra="train")
def ensemble(config: MakeEnsemble) -> EnsembleResult:
    """Average the predictions of several finished runs, and say how good that is.

    Each run gets images of its own size and normalisation. The test split is read for the report alone.

    Returns:
        Scores of members and ensemble, and how alike the members predict.

    Raises:
        UserError: runs can't be loaded or don't belong together; every mistake is listed, and nothing was written.
    """
    from attention_transfer.evaluation.ensemble import average_runs

    return average_runs(config)


@verb(Evaluate, words=("models",), extra="train")
def evaluate(config: Evaluate) -> Evaluation:
    """Say how good classifiers are: accuracy, calibration and confusion, with intervals, and how far two differ.

    Intervals are over images, 95 % (BCa); differences are paired image by image, with a sign-flip test. With `frozen`,
    features are judged in place of a classification layer.

    Returns:
        The scores of each model, and the difference of each two.

    Raises:
        UserError: a model can't be loaded, has no classes, or its classes are not those of the data set; nothing was
            written.
    """
    from attention_transfer.evaluation.evaluate_verb import evaluate_models

    return evaluate_models(config)


@verb(Corrupt, words=("data", "out"), extra="train")
def corrupt(config: Corrupt) -> CorruptedImages:
    """Write shifted copies of labelled images to disk, once, for `evaluate --shift`.

    The fifteen common corruptions of ImageNet-C at five severities, or objects on other backgrounds where there are
    masks. The same settings give the same images; the folder appears whole or not at all.

    Returns:
        Where they are, and how many.

    Raises:
        UserError: the images can't be loaded, have no masks for backgrounds, or the folder can't be written.
        OSError: the disk is full, or alike; nothing is left behind.
    """
    from attention_transfer.evaluation.corrupt_verb import write_corrupted

    return write_corrupted(config)


@verb(Segment, words=("models",), extra="train")
def segment(config: Segment) -> list[ModelSegmentation]:
    """Measure how well attention finds the foreground, against masks, by several protocols at once.

    Scores are Jaccard indices with 95 % intervals over images. The best head for each object is an oracle, which only
    someone with the mask can choose; the other protocols stand beside it.

    Returns:
        A record for each model, with a result for each layer and mass.

    Raises:
        UserError: a model can't be loaded, images have no masks or unfit ones, or a layer is out of range; nothing was
            written.
    """
    from attention_transfer.evaluation.segment_verb import segment_models

    return segment_models(config)


@verb(MeasureSimilarity, words=("a", "b", "data"), extra="train")
def similarity(config: MeasureSimilarity) -> Similarity:
    """Compare the attention and the outputs of two networks, block by block, on the same images.

    Prints Jensen–Shannon divergence under four ways to match heads, CKA of the blocks' outputs, and what each network's
    attention is like: how wide, how far, how much of it sinks. With epochs, how far a run drifted after each.

    Returns:
        The result, with all pairs of blocks.

    Raises:
        UserError: a network can't be loaded, the patch grids differ, or a layer is out of range; nothing was written.
    """
    from attention_transfer.evaluation.similarity_verb import compare_networks

    return compare_networks(config)


@verb(Show, words=("models", "images"), extra="train")
def show(config: Show) -> Figure:
    """Draw where networks look: attention over images, exactly on their pixels, as one figure.

    Class token or any patch; mean or maximum over heads, or each; rollout and relevance; several networks on one scale,
    and their differences; a run over its epochs, as a moving picture. What a network did not see of an image, because
    it was cropped, is shaded.

    Returns:
        The figure, of matplotlib; with epochs, that of the last one.

    Raises:
        UserError: a network or an image can't be loaded, or there is no such token, layer, head or class; nothing was
            written.
    """
    from attention_transfer.evaluation.show_verb import show_attention

    return show_attention(config)


@verb(Explore, words=("models", "images"), extra="explore")
def explore(config: Explore) -> ExplorerWidget | None:
    """Open a page on which one sees where every head of every layer looks, in up to four networks at once.

    The page is served to this machine alone until Ctrl-C, shown below the cell of a notebook, or written into one file
    with `html`. Maps are computed as they are asked for.

    Returns:
        The widget in a notebook, which the cell shows; `None` otherwise, once the page has ended.

    Raises:
        UserError: a network or an image can't be loaded, or no port can be listened on.
    """
    from attention_transfer.explorer.opening import explore_networks

    return explore_networks(config)


@verb(Doctor, words=("teacher", "student"))
def doctor(config: Doctor) -> Diagnosis:
    """Say what a vision transformer is, and whether a student can take its attention.

    Prints a table of both, and each difference with its effect and how to fix it. With images, it also looks at the
    teacher's attention: what sinks and registers get, and whether artefacts will spoil a transfer.

    Returns:
        The report.

    Raises:
        UserError: one of the two can't be made, or is not supported.
    """
    from attention_transfer.evaluation.doctor import examine

    return examine(config)


@verb(MeasureCost, extra="train")
def bench(config: MeasureCost) -> list[Cost]:
    """Measure what each method costs a step, in time and memory, against the floor.

    The floor is a student's step and a teacher's forward pass. A method's steps alternate with the floor's, in random
    order, so that each ratio is of one moment; the floor's own line, two of it side by side, shows the noise. On the
    CPU both run in processes of their own.

    Returns:
        A record for each method and image size that could be measured.

    Raises:
        UserError: there is no such method, device or model.
    """
    from attention_transfer.experiments.bench import measure_costs

    return measure_costs(config)


@verb(ListRuns, words=("folders",), extra="train")
def runs(config: ListRuns) -> list[RunRecord] | RunDifference:
    """List runs and their results, or show in what two of them differ: runs diff A B.

    Returns:
        A record for each run; with diff, the settings, the environment and the results of both.

    Raises:
        UserError: there is no such folder, or a folder after diff is no run; nothing was written.
    """
    from attention_transfer.experiments.runs import show_runs

    return show_runs(config)


@verb(NoSettings)
def presets(config: NoSettings) -> dict[str, Preset]:  # noqa: ARG001
    """List the methods: what each does, and where it comes from.

    Returns:
        Each preset by its name.
    """
    methods = {**PRESETS, **presets_of_other_packages()}
    width = max(map(len, methods))
    for name, method in methods.items():
        print(f"{name:{width}}  {method.summary}{f' ({method.source})' if method.source else ''}")
    return methods


_OWN = (
    demo,
    inspect_data,
    pretrain,
    train,
    compare,
    predict,
    export,
    ensemble,
    evaluate,
    corrupt,
    segment,
    similarity,
    show,
    explore,
    sweep,
    status,
    doctor,
    bench,
    runs,
    presets,
)
VERBS: dict[str, Verb[..., Any]] = {own.name: own for own in _OWN}
"""The verbs of this package, by name."""


@cache
def of_other_packages() -> dict[str, Verb[..., Any]]:
    """Verbs that other packages registered, by name."""
    from importlib.metadata import entry_points  # which takes longer than all else here

    found: dict[str, Verb[..., Any]] = {}
    for entry in entry_points(group=GROUP):
        loaded = entry.load() if entry.name not in VERBS else None
        if isinstance(loaded, Verb):
            found[entry.name] = loaded
    return found


def find(name: str) -> Verb[..., Any]:
    """The verb of this name.

    Raises:
        UserError: there is none; the nearest is named.
    """
    found = VERBS.get(name) or of_other_packages().get(name)
    if found is None:
        raise UserError(f"there is no verb {short(name)!r}; {nearest(name, [*VERBS, *of_other_packages()])}")
    return found
