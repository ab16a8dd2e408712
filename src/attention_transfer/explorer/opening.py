"""The verb `explore`: load what is to be looked at, and show it in a browser, in a notebook or in a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attention_transfer.config.explore import Explore
from attention_transfer.errors import raise_all
from attention_transfer.evaluation.epochs import KeptEpochs
from attention_transfer.evaluation.subjects import Subject, data_of, load_subject, short_names
from attention_transfer.explorer.album import Picture, Room, offered_data, offered_files
from attention_transfer.explorer.network import ExploredNetwork
from attention_transfer.explorer.page_file import file_of, html_problems
from attention_transfer.explorer.session import Explorer
from attention_transfer.ui import show_line

if TYPE_CHECKING:
    from attention_transfer.explorer.widget import ExplorerWidget

log = logging.getLogger("attention_transfer")

_OFFERED, _IN_A_FILE = 200, 8
_MODEL, _DATA = "builtin/vit_characters", "digit-scenes"


def explore_networks(config: Explore) -> ExplorerWidget | None:
    """The verb `explore`."""
    unshown = config.view == "notebook" and config.html is None and not in_notebook()
    missing = ["view is notebook, but this runs in none; leave it out"] if unshown else []
    raise_all([*html_problems(config), *missing])
    explorer = loaded(config)
    if config.html is not None:
        file_of(explorer, config)
        return None
    if config.view == "notebook" or (config.view == "auto" and in_notebook()):
        from attention_transfer.explorer.widget import ExplorerWidget

        if config.view == "auto":
            show_line('below the cell, as this runs in a notebook; view="page" serves a page')
        return ExplorerWidget(explorer)
    from attention_transfer.explorer.serve import serve

    serve(explorer, host=config.host, port=config.port, browser=config.open)
    return None


def loaded(config: Explore) -> Explorer:
    """The networks and images that a configuration names.

    Raises:
        UserError: one of them can't be loaded, or nothing says which images to take.
    """
    names = config.models or [_MODEL]
    subjects = [load_subject(name, config.image_size, config.device) for name in names]
    networks = [
        ExploredNetwork(str(index), subject, label, KeptEpochs.of(subject.name).fitting(subject.vit, subject.name))
        for index, (subject, label) in enumerate(zip(subjects, short_names(names), strict=True))
    ]
    return Explorer(networks, _offered(config, subjects), Room() if config.uploads else None)


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook, which has shown itself to IPython."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _offered(config: Explore, subjects: Sequence[Subject]) -> Sequence[Picture]:
    limit = config.limit or (_OFFERED if config.html is None else _IN_A_FILE)
    if config.images:
        pictures, notes = offered_files(config.images, limit)
        for note in notes:
            log.info("%s", note)
        return pictures
    data = config.data
    if data is None and not config.models:
        data = _DATA
        log.info("no network and no image is named: %s with images of %s", _MODEL, _DATA)
    data = data_of(subjects, data)
    pictures = offered_data(data, config.split, limit)
    log.info("%d images of %s (%s)", len(pictures), data, config.split)
    return pictures
