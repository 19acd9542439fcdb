"""``mask``: target with the selected units set back to base."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from torch import Tensor

from filterattr.cli.answers import answer
from filterattr.cli.commands.merged import check_out
from filterattr.export import write_checkpoint
from filterattr.files.lazy import StoredTensor, stored_weights
from filterattr.intervention import blend, check_selection
from filterattr.results.scores import FilterSelection


def run(options: argparse.Namespace) -> None:
    """Blend one parameter after the other, and write them."""
    check_out(options, options.target, (options.base, options.selection))
    selection = FilterSelection.load(options.selection)
    ends = [stored_weights(path, key=options.key) for path in (options.base, options.target)]
    masked = _Masked(selection, ends[0], ends[1], options.strength)
    write_checkpoint(masked, options.target, options.out, key=options.key)
    answer(
        options,
        f"{selection.count} of {selection.n_units} units at strength {options.strength:g}\nwrote {options.out}",
        {"out": str(options.out), "count": selection.count, "n_units": selection.n_units},
    )


class _Masked(Mapping[str, Tensor]):
    """The selected parameters, blended when they are asked for; all others stay as they are in target."""

    def __init__(
        self,
        selection: FilterSelection,
        base: Mapping[str, StoredTensor],
        target: Mapping[str, StoredTensor],
        strength: float,
    ) -> None:
        self._selection, self._base, self._target, self._strength = selection, base, target, strength
        check_selection(selection, {"target": target, "base": base})

    def __getitem__(self, name: str) -> Tensor:
        scored = self._selection.parameters[name]
        key = scored.key(name)
        chosen = FilterSelection({key: self._selection.kept[key]}, {name: scored})
        ends = {name: self._target[name].read()}, {name: self._base[name].read()}
        return blend(*ends, chosen, self._strength)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._selection.parameters)

    def __len__(self) -> int:
        return len(self._selection.parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._selection.parameters
