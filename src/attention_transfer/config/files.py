"""Configuration files, which may extend each other; those of the published experiments by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attention_transfer.errors import UserError, nearest

_PACKAGE = Path(__file__).parent.parent
RECIPES = next(path for path in (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes") if path.is_dir())
"""The published experiments: in the package, or beside the source in a checkout."""

_LONGEST = 16  # files in a row


def config_path(name: str | Path) -> Path:
    """The file that is meant by a path, or by `recipe:` and the name of a published experiment.

    Raises:
        UserError: there is no such experiment; the nearest is named.
    """
    text = str(name)
    if not text.startswith("recipe:"):
        return Path(name).expanduser()
    chosen = text.removeprefix("recipe:").removesuffix(".yaml")
    known = {str(path.relative_to(RECIPES).with_suffix("")): path for path in sorted(RECIPES.rglob("*.yaml"))}
    if chosen not in known:
        raise UserError(f"there is no recipe {chosen!r}; {nearest(chosen, known)}")
    return known[chosen]


def read_config(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration file, laid over the one that it `extends`, and that over its own.

    `extends` is a path beside the file. Settings of groups, as `recipe`, are joined; all others, lists too, are
    replaced as a whole.

    Raises:
        UserError: a file is missing or no configuration, or the files extend each other in a circle, or too often.
    """
    from attention_transfer.plain_yaml import read_mapping

    file = config_path(path)
    if not file.exists():
        by = f", which {_seen[-1]} extends" if _seen else ""
        raise UserError(f"there is no configuration file {file}{by}; check the path")
    here = file.resolve()
    if here in _seen:
        raise UserError(f"{file} extends itself, by way of {' and '.join(p.name for p in _seen)}; end the circle")
    if len(_seen) >= _LONGEST:
        raise UserError(f"{_seen[0]} extends a file that extends another, and so on over {_LONGEST} times; join some")
    content = read_mapping(file)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base:
        raise UserError(f"{file} extends {base!r}; name one file")
    named = base if base.startswith("recipe:") else file.parent / Path(base).expanduser()
    return _over(read_config(named, (*_seen, here)), content)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = {**below}
    for key, value in above.items():
        group = joined.get(key)
        joined[key] = _over(group, value) if isinstance(group, dict) and isinstance(value, dict) else value
    return joined
