"""Which network a checkpoint of somebody else holds, told by its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# the first release of ESRGAN called the same layers by other names
_OLD_RRDB = {
    r"^RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"^trunk_conv\.": "conv_body.",
    r"^upconv(\d)\.": r"conv_up\1.",
    r"^HRconv\.": "conv_hr.",
}


def recognise(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
    """Tell architecture and arguments from the weights of a network.

    Args:
        state: Parameter name to tensor.

    Returns:
        Architecture, arguments of its constructor, and the weights by the names of this package; ``None`` if it is
        none of `sr_zoo.models`.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> recognise(SRResNet(num_feat=8, num_block=3, upscale=4).state_dict())[1]
        {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 3, 'upscale': 4}
    """
    state = dict(state)
    if any(name.startswith("RRDB_trunk.") for name in state):
        state = {_renamed(name): value for name, value in state.items()}
    for name, arguments_of in (("rrdbnet", _rrdbnet), ("srresnet", _srresnet), ("srcnn_style", _srcnn_style)):
        try:
            arguments = arguments_of(state)
        except (KeyError, IndexError, ZeroDivisionError):  # a layer is missing or of another kind
            continue
        if arguments is not None:
            return name, arguments, state
    return None


def _renamed(name: str) -> str:
    for old, new in _OLD_RRDB.items():
        name = re.sub(old, new, name)
    return name


def _blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of blocks, from the highest number in names like ``body.7.conv1.weight``."""
    found = [int(match[1]) for match in (re.match(pattern, name) for name in state) if match]
    return max(found) + 1 if found else 0


def _srresnet(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``conv_first``, ``body.N.conv1``, ``upconv1``, perhaps ``upconv2``, ``conv_hr``, ``conv_last``."""
    blocks = _blocks(state, r"body\.(\d+)\.conv1\.weight$")
    first, last, up = (state[f"{name}.weight"] for name in ("conv_first", "conv_last", "upconv1"))
    factor = {4: 2, 9: 3}.get(up.shape[0] // first.shape[0])
    if not blocks or factor is None:
        return None
    return {
        "num_in_ch": first.shape[1],
        "num_out_ch": last.shape[0],
        "num_feat": first.shape[0],
        "num_block": blocks,
        "upscale": 4 if "upconv2.weight" in state else factor,
    }


def _srcnn_style(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``features.N`` alone; how many there are and their width tell the factor."""
    if not all(name.startswith("features.") for name in state):
        return None
    if "features.20.weight" in state:
        return {"upscale": 4}
    return {"upscale": {4: 2, 9: 3}[state["features.12.weight"].shape[0] // state["features.10.weight"].shape[0]]}


def _rrdbnet(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """``conv_first``, ``body.N.rdb1.conv1``, ``conv_body``, ``conv_up1``, ``conv_up2``, ``conv_hr``, ``conv_last``."""
    blocks = _blocks(state, r"body\.(\d+)\.rdb1\.conv1\.weight$")
    first, last = state["conv_first.weight"], state["conv_last.weight"]
    if not blocks:
        return None
    # folding 2x2 or 4x4 pixels multiplies the channels; what comes out says how many an image has
    upscale = {1: 4, 4: 2, 16: 1}.get(first.shape[1] // last.shape[0], 4)
    return {
        "num_in_ch": first.shape[1] // {4: 1, 2: 4, 1: 16}[upscale],
        "num_out_ch": last.shape[0],
        "num_feat": first.shape[0],
        "num_block": blocks,
        "num_grow_ch": state["body.0.rdb1.conv1.weight"].shape[0],
        "upscale": upscale,
    }
