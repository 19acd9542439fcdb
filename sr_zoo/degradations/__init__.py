"""Degradations of photographs: batched, seeded by a generator, on the device of the images."""

from sr_zoo.degradations.base import Degradation, DegradationError, Strengths, from_config
from sr_zoo.degradations.blur import AnisotropicGaussianBlur, GaussianBlur, GeneralizedGaussianBlur, PlateauBlur, Sinc
from sr_zoo.degradations.draws import Drawn, OneOf, Shuffled
from sr_zoo.degradations.jpeg import JPEG, DifferentiableJPEG
from sr_zoo.degradations.noise import GaussianNoise, PoissonNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes
from sr_zoo.degradations.protocol import (
    STRENGTH_UNITS,
    Degradations,
    blind_inputs,
    clean_inputs,
    evaluation_inputs,
)
from sr_zoo.degradations.resize import Downsample, Resize
from sr_zoo.degradations.second_order import SecondOrder, second_order
from sr_zoo.degradations.spelling import SPELLING, degradations_from, input_from, spellings_of

__all__ = [
    "JPEG",
    "SPELLING",
    "STRENGTH_UNITS",
    "AnisotropicGaussianBlur",
    "Degradation",
    "DegradationError",
    "Degradations",
    "DifferentiableJPEG",
    "Downsample",
    "Drawn",
    "GaussianBlur",
    "GaussianNoise",
    "GeneralizedGaussianBlur",
    "OneOf",
    "Pipeline",
    "PlateauBlur",
    "PoissonNoise",
    "Quantize",
    "Resize",
    "SecondOrder",
    "Shuffled",
    "Sinc",
    "Sometimes",
    "Strengths",
    "blind_inputs",
    "clean_inputs",
    "degradations_from",
    "evaluation_inputs",
    "from_config",
    "input_from",
    "second_order",
    "spellings_of",
]
