"""Models that come with the package, each a folder named as the model.

They are read by their names wherever a model's path may stand; see `locate`.
"""

from __future__ import annotations

import pathlib

_FOLDER = pathlib.Path(__file__).with_name("shipped_models")


def shipped_models() -> dict[str, pathlib.Path]:
    """Return name -> model directory of the models that come with the package."""
    return {path.name: path for path in sorted(_FOLDER.iterdir()) if path.is_dir()}
