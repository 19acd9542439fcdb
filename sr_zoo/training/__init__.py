"""Training of restoration networks, resumable after a kill, reproducible number by number."""

from sr_zoo.training.interrupts import TrainingInterrupted
from sr_zoo.training.log import draw_curves, read_log
from sr_zoo.training.objective import Objective, wanted_estimates
from sr_zoo.training.precision import fast_precision
from sr_zoo.training.processes import Processes, joined_processes
from sr_zoo.training.recipe import PRECISIONS, Batch, Recipe, TrainingError, random_patches
from sr_zoo.training.trainer import Trainer, stored_precision

__all__ = [
    "PRECISIONS",
    "Batch",
    "Objective",
    "Processes",
    "Recipe",
    "Trainer",
    "TrainingError",
    "TrainingInterrupted",
    "draw_curves",
    "fast_precision",
    "joined_processes",
    "random_patches",
    "read_log",
    "stored_precision",
    "wanted_estimates",
]
