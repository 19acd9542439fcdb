"""Which filters carry a function? Attribution in parameter space for any `torch.nn.Module`."""

import importlib
from typing import TYPE_CHECKING, Any

from filterattr.errors import (
    DistributedError,
    FilterAttrError,
    FilterAttrWarning,
    LossError,
    ModelChangedError,
    NonFiniteError,
    SettingError,
    StateMismatchError,
    StorageError,
    UnitError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from filterattr.activations.attributor import ChannelAttributor
    from filterattr.activations.result import ChannelAttribution
    from filterattr.attribution import FilterAttributor
    from filterattr.display.report import report
    from filterattr.files.checkpoints import load_state
    from filterattr.intervention import blend, swapped, train_only
    from filterattr.recorder import PathRecorder
    from filterattr.results.attribution import FilterAttribution
    from filterattr.results.cost import CostEstimate
    from filterattr.results.scores import FilterScores, FilterSelection, contrast
    from filterattr.results.signed import expected_removed, signed_contrast
    from filterattr.units.builders import attention_heads, output_channels, recurrent_gates
    from filterattr.units.groups import Group
    from filterattr.units.layouts import register_layout
    from filterattr.units.unit import ScoredParameter, Unit

__version__ = "0.2.0"

__all__ = [
    "ChannelAttribution",
    "ChannelAttributor",
    "CostEstimate",
    "DistributedError",
    "FilterAttrError",
    "FilterAttrWarning",
    "FilterAttribution",
    "FilterAttributor",
    "FilterScores",
    "FilterSelection",
    "Group",
    "LossError",
    "ModelChangedError",
    "NonFiniteError",
    "PathRecorder",
    "ScoredParameter",
    "SettingError",
    "StateMismatchError",
    "StorageError",
    "Unit",
    "UnitError",
    "UnsupportedModelError",
    "__version__",
    "attention_heads",
    "blend",
    "contrast",
    "expected_removed",
    "load_state",
    "output_channels",
    "recurrent_gates",
    "register_layout",
    "report",
    "signed_contrast",
    "swapped",
    "train_only",
]

# where a name is defined: PyTorch is loaded with the first of them, and not by `filterattr --help`
_PLACES = {
    "ChannelAttribution": "activations.result",
    "ChannelAttributor": "activations.attributor",
    "CostEstimate": "results.cost",
    "FilterAttribution": "results.attribution",
    "FilterAttributor": "attribution",
    "FilterScores": "results.scores",
    "FilterSelection": "results.scores",
    "Group": "units.groups",
    "PathRecorder": "recorder",
    "ScoredParameter": "units.unit",
    "Unit": "units.unit",
    "attention_heads": "units.builders",
    "blend": "intervention",
    "contrast": "results.scores",
    "expected_removed": "results.signed",
    "load_state": "files.checkpoints",
    "output_channels": "units.builders",
    "recurrent_gates": "units.builders",
    "register_layout": "units.layouts",
    "report": "display.report",
    "signed_contrast": "results.signed",
    "swapped": "intervention",
    "train_only": "intervention",
}


def __getattr__(name: str) -> Any:
    """Load a name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
