"""Rankings and sets against truth that is known; ``python -m filterattr.benchmarks.planted`` runs them all."""

from filterattr.benchmarks.families import Family, families
from filterattr.benchmarks.planting import PlantedPair, loss, plant
from filterattr.benchmarks.scoring import Judge, Ranked, Truth, auroc, rankings

__all__ = ["Family", "Judge", "PlantedPair", "Ranked", "Truth", "auroc", "families", "loss", "plant", "rankings"]
