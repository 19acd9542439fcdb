"""Which filters carry a function? Attribution in parameter space for any `torch.nn.Module`."""

from typing import TYPE_CHECKING, Any

from filterattr.activations.attributor import ChannelAttributor
from filterattr.activations.result import ChannelAttribution
from filterattr.attribution import FilterAttributor
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

if TYPE_CHECKING:
    from filterattr.display.report import report

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


def __getattr__(name: str) -> Any:
    """Load what few calls need on first use: a report brings all of the analysis with it."""
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from filterattr.display.report import report  # noqa: PLC0415 - on first use

    globals()[name] = report
    return report
