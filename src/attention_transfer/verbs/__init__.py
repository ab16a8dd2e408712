"""The verbs, a file each: one object of a typed configuration and a function of it, callable from Python and by name.

Another package registers a verb by an entry point, whose name is the verb's:

    [project.entry-points."attention_transfer.verbs"]
    hello = "my_package.hello:hello"

Nothing heavy is loaded before a verb is called.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from attention_transfer.config.values import short
from attention_transfer.errors import UserError, nearest
from attention_transfer.verbs.base import EXTRAS as EXTRAS
from attention_transfer.verbs.base import Verb as Verb
from attention_transfer.verbs.base import verb as verb
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

GROUP = "attention_transfer.verbs"

_OWN = (  # in the order of the help
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
