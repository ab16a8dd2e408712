"""The verb `presets`."""

from __future__ import annotations

from attention_transfer.config.base import Config
from attention_transfer.config.presets import PRESETS, Preset, of_other_packages
from attention_transfer.verbs.base import verb


@verb(Config)
def presets(config: Config) -> dict[str, Preset]:  # noqa: ARG001
    """List the methods: what each does, and where it comes from.

    Returns:
        Each preset by its name.
    """
    methods = {**PRESETS, **of_other_packages()}
    width = max(map(len, methods))
    for name, method in methods.items():
        print(f"{name:{width}}  {method.summary}{f' ({method.source})' if method.source else ''}")
    return methods
