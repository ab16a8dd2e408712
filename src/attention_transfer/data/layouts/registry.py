"""The layouts that are known: those of the files beside this one, and those that other packages register."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from attention_transfer.data.layouts.layout import Layout
from attention_transfer.errors import UserError

GROUP = "attention_transfer.layouts"


def layouts() -> dict[str, Layout]:
    """Every layout by its name.

    Raises:
        UserError: another package's layout can't be loaded, or has the name of one that is there.
    """
    found: dict[str, Layout] = {}
    for origin, layout in [*_own(), *_of_other_packages()]:
        if layout.name in found:
            raise UserError(f"{origin} registers a second layout called {layout.name!r}; uninstall it or update it")
        found[layout.name] = layout
    return found


def find_layout(path: Path) -> Layout | None:
    """The layout of a folder, or of the one folder that its archive made in it; `None` if none is recognised.

    Raises:
        UserError: the folder holds several data sets.
    """
    found = [layout for layout in layouts().values() if layout.find(path) is not None]
    if len(found) > 1:
        titles = " and ".join(layout.title for layout in found)
        raise UserError(f"{path} holds {titles}; name the folder of one of them")
    return found[0] if found else None


def _own() -> Iterator[tuple[str, Layout]]:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        for value in vars(import_module(module.name)).values():
            yield from ((module.name, layout) for layout in _layouts_in(value))


def _of_other_packages() -> Iterator[tuple[str, Layout]]:
    for point in entry_points(group=GROUP):
        try:
            found = _layouts_in(point.load())
        except Exception as error:
            raise UserError(f"the layout {point.value} can't be loaded ({error}); uninstall it or update it") from error
        if not found:
            raise UserError(f"{point.value} is registered as a layout, but is no Layout; uninstall it or update it")
        yield from ((point.value, layout) for layout in found)


def _layouts_in(value: object) -> list[Layout]:
    return [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Layout)]
