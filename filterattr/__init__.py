"""Which filters carry a function? Attribution in parameter space for any `torch.nn.Module`."""

from filterattr.attribution import FilterAttributor
from filterattr.channels import ChannelAttribution, ChannelAttributor
from filterattr.display.report import report
from filterattr.engine.units import Group, Unit
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
from filterattr.groups import attention_heads, output_channels, recurrent_gates
from filterattr.intervention import blend, swapped, train_only
from filterattr.layouts import register_layout
from filterattr.loading import load_state
from filterattr.recorder import PathRecorder
from filterattr.result import FilterAttribution
from filterattr.scores import FilterScores, FilterSelection, contrast

__version__ = "0.1.0"

__all__ = [
    "ChannelAttribution",
    "ChannelAttributor",
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
    "load_state",
    "output_channels",
    "recurrent_gates",
    "register_layout",
    "report",
    "swapped",
    "train_only",
]
