"""Build networks from a name and arguments, which may come from a file, after a check of names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from filterattr import FilterAttrError
from sr_zoo.models import DASR, RRDBNet, SRCNNStyle, SRResNet, TwoBranch
from sr_zoo.models.blocks import MOST_BLOCKS, brief

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "srresnet": SRResNet,
    "srcnn_style": SRCNNStyle,
    "two_branch": TwoBranch,
    "dasr": DASR,
    "rrdbnet": RRDBNet,
}

_MOST_LISTED = 20
_FEWEST_IN_BLOCK = 4  # two convolutions with their biases


class WeightsError(FilterAttrError, ValueError):
    """Weights are unknown, unreadable, or of another network; the message says which."""


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name; its first weights come from PyTorch's global generator.

    Args:
        architecture: ``"srresnet"``, ``"srcnn_style"``, ``"two_branch"``, ``"dasr"`` or ``"rrdbnet"``.
        arguments: Keyword arguments of its constructor.

    Returns:
        The network, in training mode.

    Raises:
        WeightsError: The name or an argument is unknown, or a value is not allowed.

    Example:
        >>> build("srcnn_style", {"upscale": 2}).upscale
        2
    """
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"the architecture must be one of {', '.join(ARCHITECTURES)}; got {brief(architecture)}.")
    try:
        return ARCHITECTURES[architecture](**arguments)
    except (TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        listed = {name: value if brief(value) == repr(value) else "..." for name, value in arguments.items()}
        raise WeightsError(f"{architecture} cannot be built from {listed}: {reason}.") from error


def build_with(
    architecture: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor], path: str | Path
) -> nn.Module:
    """Build a network with given weights. Weights that do not fit are refused before memory or time is spent.

    Args:
        architecture: As in `build`.
        arguments: As in `build`.
        state: Its weights by name; the network has copies in its own type.
        path: Where the weights came from, for messages.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        WeightsError: As in `build` and `check_weights`.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> state = SRResNet(num_feat=4, num_block=1).state_dict()
        >>> build_with("srresnet", {"num_feat": 8, "num_block": 1}, state, "a.pth")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: 'a.pth' does not fit SRResNet: shapes differ: conv_first.weight (4, 3, 3, 3) ...
    """
    blocks = arguments.get("num_block")
    if isinstance(blocks, int) and MOST_BLOCKS >= blocks > len(state) // _FEWEST_IN_BLOCK:
        raise WeightsError(f"'{path}' holds {len(state)} tensors, which are too few for num_block={blocks}.")
    with torch.device("meta"), _WithoutFirstWeights():
        network = build(architecture, arguments)
    check_weights(network, state, path)
    held = network.state_dict()
    copies = {
        name: torch.empty(value.shape, dtype=held[name].dtype, device="cpu").copy_(value)
        for name, value in state.items()
    }
    network.load_state_dict(copies, assign=True)
    return network.eval()


def check_weights(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that do not fit a network, or that it cannot compute with.

    Args:
        network: The network, on any device, with or without data.
        state: Parameter name to tensor.
        path: Where the weights came from.

    Raises:
        WeightsError: Names or shapes differ, or a weight is infinite, not a number or complex; they are named.

    Example:
        >>> check_weights(nn.Linear(2, 1), {"weight": torch.ones(1, 3)}, "a.pth")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: 'a.pth' does not fit Linear: it lacks bias; shapes differ: ... instead ...
    """
    held = network.state_dict()
    shapes = {name: (tuple(state[name].shape), tuple(held[name].shape)) for name in held if name in state}
    findings = {
        "it lacks": [name for name in held if name not in state],
        "the network has no": [brief(name).strip("'") for name in state if name not in held],
        "shapes differ:": [f"{name} {given} instead of {own}" for name, (given, own) in shapes.items() if given != own],
    }
    listed = "; ".join(f"{finding} {_listed(names)}" for finding, names in findings.items() if names)
    if listed:
        raise WeightsError(f"'{path}' does not fit {type(network).__name__}: {listed}. Build it with other arguments.")
    check_values(state, path)


def check_values(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that no network can compute with.

    Args:
        state: Parameter name to tensor.
        path: Where the weights came from.

    Raises:
        WeightsError: Some are infinite or not a number, or complex; they are named.

    Example:
        >>> check_values({"weight": torch.tensor([1.0, float("nan")])}, "a.pth")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: weights must be finite real numbers; those of 'a.pth' are not in weight. ...
    """
    wrong = [name for name, value in state.items() if value.is_complex() or not bool(value.isfinite().all())]
    if wrong:
        raise WeightsError(
            f"weights must be finite real numbers; those of '{path}' are not in {_listed(wrong)}. The training "
            "diverged, or the file is damaged: take an earlier checkpoint."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


class _WithoutFirstWeights(TorchFunctionMode):
    """Draw no first weights: there is no memory to draw them into, and describing the draw takes a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))
