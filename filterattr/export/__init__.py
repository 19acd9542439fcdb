"""Exports of selections and scores to other programs: patches, arguments of PEFT, masks and checkpoints."""

from filterattr.export.adapters import lora_arguments, shira_masks
from filterattr.export.checkpoint import write_checkpoint
from filterattr.export.patch import Patch, SparseWeights, apply_patch, export_patch, read_patch

__all__ = [
    "Patch",
    "SparseWeights",
    "apply_patch",
    "export_patch",
    "lora_arguments",
    "read_patch",
    "shira_masks",
    "write_checkpoint",
]
