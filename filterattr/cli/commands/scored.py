"""Files of scores and selections, as the commands take them."""

from __future__ import annotations

from pathlib import Path

from filterattr.errors import SettingError
from filterattr.files.safetensors import own_kind
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores
from filterattr.units.unit import Reduction


def scores_of(path: Path, reduction: Reduction = "sum_of_abs") -> FilterScores:
    """Read scores.

    Args:
        path: A file of an attribution or of scores.
        reduction: Which scores of an attribution.

    Returns:
        The scores.

    Raises:
        SettingError: The file holds neither, or a reduction was given for a file of scores, which have only one.
        StorageError: The file cannot be read.
    """
    kind = own_kind(path)
    if kind == "attribution":
        return FilterAttribution.load(path).scores(reduction)
    if kind != "scores":
        raise SettingError(f"'{path}' must hold an attribution or scores; it holds {kind or 'something else'}.")
    if reduction != "sum_of_abs":
        raise SettingError(f"--reduction is for attributions; '{path}' holds scores.")
    return FilterScores.load(path)
