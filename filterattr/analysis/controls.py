"""Controls for a selection: they keep the places and change the values, or keep the degrees and change the edges."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis.knockout import unit_labels
from filterattr.errors import SettingError, StateMismatchError, name_some
from filterattr.model.state_dict import StateLike, copied, plain_state, shared_names, unwrap_model
from filterattr.model.swap import ParameterSwap
from filterattr.results.scores import FilterSelection
from filterattr.units.unit import ScoredParameter, Unit


def scrambled(
    target: StateLike,
    selection: FilterSelection,
    how: Literal["permute", "flip"],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Keep the places of a selection and scramble the values in them.

    Args:
        target: The weights.
        selection: The units.
        how: ``"permute"`` gives every selected unit the values of another selected unit of the same parameter and
            size; a parameter with a single selected unit keeps it. ``"flip"`` changes the sign of each selected unit
            with probability one half.
        generator: Source of randomness, on the CPU.

    Returns:
        A state dict, in which all other weights keep their bits.

    Raises:
        SettingError: ``how`` is unknown.
        StateMismatchError: A selected parameter is missing or has another shape.

    Example:
        >>> from filterattr import ScoredParameter
        >>> chosen = FilterSelection({"w": torch.tensor([True, True, False])},
        ...                          {"w": ScoredParameter(Unit("o i -> o"), (3, 2))})
        >>> target = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
        >>> scrambled(target, chosen, "permute", torch.Generator().manual_seed(1))["w"].tolist()
        [[3.0, 4.0], [1.0, 2.0], [5.0, 6.0]]
    """
    if how not in ("permute", "flip"):
        raise SettingError(f'how must be "permute" or "flip"; got {how!r}.')
    state = copied(plain_state(target, "target", selection.parameters))
    shared = shared_names(state)
    misfits = [
        name
        for name, scored in selection.parameters.items()
        if name not in state or tuple(state[name].shape) != scored.shape
    ]
    if misfits:
        raise StateMismatchError(
            f"target must hold the selected parameters in their shapes; {name_some(misfits)} differ."
        )
    for name, scored in selection.parameters.items():
        places = torch.nonzero(selection[name].reshape(-1).cpu()).reshape(-1)
        # rows of weights, one unit a row, in the order of the parameter
        order = torch.sort(unit_labels(scored).reshape(-1), stable=True).indices
        rows = state[name].reshape(-1).cpu()[order].reshape(selection[name].numel(), -1).clone()
        if how == "permute":
            rows[places] = rows[places[torch.randperm(len(places), generator=generator, device="cpu")]]
        else:
            signs = 2 * torch.randint(0, 2, (len(places), 1), generator=generator, device="cpu") - 1
            rows[places] = rows[places] * signs.to(rows.dtype)
        flat = torch.empty_like(rows.reshape(-1))
        flat[order] = rows.reshape(-1)
        state |= dict.fromkeys(shared[name], flat.reshape(scored.shape).to(state[name].device))
    return state


def shuffled_edges(selection: FilterSelection, generator: torch.Generator, *, tries: int = 20) -> FilterSelection:
    """Keep the number of selected kernels of every channel, and shuffle which channels they connect.

    A kernel is an edge from an input channel to an output channel. Two edges of one layer exchange their ends, unless
    the exchange would duplicate an edge. So all in-degrees and out-degrees are kept.

    Args:
        selection: Kernels. Parameters whose scores do not have two axes are not changed.
        generator: Source of randomness, on the CPU.
        tries: Number of exchanges to try per edge.

    Returns:
        A selection with the same number of kernels in every row and column of every layer.

    Example:
        >>> from filterattr import ScoredParameter
        >>> like = {"w": ScoredParameter(Unit("o i ... -> o i"), (2, 2, 3, 3))}
        >>> edges = FilterSelection({"w": torch.eye(2, dtype=torch.bool)}, like)
        >>> shuffled_edges(edges, torch.Generator().manual_seed(0))["w"].sum(0)
        tensor([1, 1])

    References:
        Maslov and Sneppen, "Specificity and Stability in Topology of Protein Networks", Science 2002.
    """
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device="cpu")))
    tensors = {}
    for name, chosen in selection.items():
        tensors[name] = chosen.clone()
        edges = torch.nonzero(chosen).tolist()
        if chosen.ndim != 2 or len(edges) < 2:
            continue
        present = {tuple(edge) for edge in edges}
        for first, second in random.integers(len(edges), size=(tries * len(edges), 2)):
            (out, into), (other_out, other_into) = edges[first], edges[second]
            new = (out, other_into), (other_out, into)
            if out == other_out or into == other_into or new[0] in present or new[1] in present:
                continue
            present -= {(out, into), (other_out, other_into)}
            present |= set(new)
            edges[first], edges[second] = list(new[0]), list(new[1])
        tensors[name] = torch.zeros_like(chosen)
        for out, into in edges:
            tensors[name][out, into] = True
    return FilterSelection(tensors, selection.parameters)


def with_biases(selection: FilterSelection, model: nn.Module) -> FilterSelection:
    """Add the biases of the selected output channels, so that complete channels are masked.

    Args:
        selection: A selection of output channels (``unit="filter"``).
        model: The network.

    Returns:
        The same selection, with the ``bias`` of every selected ``weight`` that has a bias.

    Raises:
        SettingError: The units of the selection are not output channels.

    Example:
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import magnitude
        >>> layer = nn.Linear(2, 3)
        >>> channels = magnitude(FilterAttributor(layer, unit="filter"), layer).top(2)
        >>> with_biases(channels, layer).per_layer()
        {'weight': 2, 'bias': 2}
    """
    inner = ParameterSwap(unwrap_model(model)).parameters
    tensors, parameters, findings = {}, {}, []
    for name, chosen in selection.items():
        tensors[name], parameters[name] = chosen, selection.parameters[name]
        bias = f"{name.removesuffix('weight')}bias"
        if not name.endswith("weight") or bias not in inner or bias in selection:
            continue
        if chosen.shape != inner[bias].shape:
            findings.append(name)
            continue
        tensors[bias], parameters[bias] = chosen, ScoredParameter(Unit("... -> ..."), tuple(chosen.shape))
    if findings:
        raise SettingError(f'the selection must be of output channels (unit="filter"); {name_some(findings)} are not.')
    return FilterSelection(tensors, parameters)
