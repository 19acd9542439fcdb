"""Degradations of photographs: batched, seeded by a generator, on the device of the images."""

from sr_zoo.degradations.base import Degradation, DegradationError, from_config
from sr_zoo.degradations.blur import AnisotropicGaussianBlur, GaussianBlur, GeneralizedGaussianBlur, PlateauBlur
from sr_zoo.degradations.noise import GaussianNoise, PoissonNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes
from sr_zoo.degradations.protocol import blind_inputs, clean_inputs, evaluation_inputs
from sr_zoo.degradations.resize import Downsample

__all__ = [
    "AnisotropicGaussianBlur",
    "Degradation",
    "DegradationError",
    "Downsample",
    "GaussianBlur",
    "GaussianNoise",
    "GeneralizedGaussianBlur",
    "Pipeline",
    "PlateauBlur",
    "PoissonNoise",
    "Quantize",
    "Sometimes",
    "blind_inputs",
    "clean_inputs",
    "evaluation_inputs",
    "from_config",
]
