"""Rankings and repairs against truth and simpler ways; the modules ``planted`` and ``repair`` are the commands."""

from filterattr.benchmarks.contest import RepairRow, repair_contest, run_repairs
from filterattr.benchmarks.families import Family, families
from filterattr.benchmarks.forgetting import SKILL, ForgettingPair, forgetting_pairs
from filterattr.benchmarks.planting import PlantedPair, loss, plant
from filterattr.benchmarks.scoring import Judge, Ranked, Truth, auroc, rankings

__all__ = [
    "SKILL",
    "Family",
    "ForgettingPair",
    "Judge",
    "PlantedPair",
    "Ranked",
    "RepairRow",
    "Truth",
    "auroc",
    "families",
    "forgetting_pairs",
    "loss",
    "plant",
    "rankings",
    "repair_contest",
    "run_repairs",
]
