"""A contact sheet: every degradation of one photograph."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from filterattr.files import replacing
from sr_zoo.degradations import (
    JPEG,
    AnisotropicGaussianBlur,
    Degradation,
    DifferentiableJPEG,
    Downsample,
    GaussianBlur,
    GaussianNoise,
    GeneralizedGaussianBlur,
    Pipeline,
    PlateauBlur,
    PoissonNoise,
    Shuffled,
    Sinc,
    evaluation_inputs,
    second_order,
)
from sr_zoo.images import ImageError, to_float

_SMALLEST = 96


def specimens() -> dict[str, Degradation]:
    """One degradation of every kind, strong enough to see, by its label.

    Returns:
        Label to degradation, in the order of the sheet.

    Example:
        >>> specimens()["area / 4"]
        Downsample(scale=4, kind='area')
    """
    parts = GaussianBlur(2.0), GaussianNoise(0.1), JPEG(30)
    protocol = evaluation_inputs(2, degradations=("blur", "noise", "jpeg"))
    return {
        "Gaussian blur\n2 px": GaussianBlur(2.0),
        "anisotropic Gaussian\n4 and 1 px, 30 degrees": AnisotropicGaussianBlur(4.0, 1.0, 30.0),
        "generalised Gaussian\n4 and 1 px, beta 0.5": GeneralizedGaussianBlur(4.0, 1.0, 30.0, 21, 0.5),
        "plateau\n4 and 1 px, beta 2": PlateauBlur(4.0, 1.0, 30.0, 21, 2.0),
        "sinc\ncut off at 1": Sinc(1.0),
        "Gaussian noise\nsigma 0.1": GaussianNoise(0.1),
        "gray Gaussian noise\nsigma 0.1": GaussianNoise(0.1, gray=True),
        "Poisson noise\nscale 2": PoissonNoise(2.0),
        "gray Poisson noise\nscale 2": PoissonNoise(2.0, gray=True),
        "JPEG\nquality 30": JPEG(30),
        "JPEG\nquality 10": JPEG(10),
        "differentiable JPEG\nquality 10": DifferentiableJPEG(10),
        "bicubic / 4\n(antialiased)": Downsample(4, "bicubic"),
        "bilinear / 4\n(published code)": Downsample(4, "bilinear"),
        "area / 4": Downsample(4, "area"),
        "protocol: clean\n/ 2": protocol["clean"],
        "protocol: blur\n/ 2": protocol["blur"],
        "protocol: noise\n/ 2": protocol["noise"],
        "protocol: all\n/ 2": protocol["all"],
        "blur, noise, JPEG\nin this order": Pipeline(parts),
        "blur, noise, JPEG\nshuffled": Shuffled(parts),
        "second order / 2\n(Real-ESRGAN)": second_order(2),
        "second order / 2\nanother draw": second_order(2),
    }


def draw_contact_sheet(photograph: Tensor, path: str | Path, *, size: int = 144, seed: int = 0) -> None:
    """Draw the middle of a photograph in every degradation, labelled; smaller images are enlarged pixel by pixel.

    Args:
        photograph: ``uint8`` of shape ``(3, H, W)``, at least 96x96.
        path: The picture to write; missing folders are made.
        size: Width and height of the part that is shown, in pixels; rounded down to a multiple of 4 that fits.
        seed: Seed of all random numbers.

    Raises:
        ImageError: The photograph or the part is smaller than 96x96, or the extension is unknown.
        StorageError: The file cannot be written; an existing file is unchanged.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sheet.png"
        >>> draw_contact_sheet(torch.zeros(3, 96, 120, dtype=torch.uint8), path)
        >>> path.exists()
        True
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    height, width = photograph.shape[-2:]
    if min(height, width, size) < _SMALLEST:
        raise ImageError(
            f"a contact sheet needs at least {_SMALLEST}x{_SMALLEST} pixels of a photograph; got {size} of "
            f"{height}x{width}."
        )
    size = min(size, height, width) // 4 * 4
    top, left = (height - size) // 2, (width - size) // 2
    image = to_float(photograph[None, :, top : top + size, left : left + size])
    shown: dict[str, Tensor] = {"photograph": image}
    for place, (label, degradation) in enumerate(specimens().items()):
        shown[label] = degradation(image, torch.Generator().manual_seed(seed * 1009 + place))
    figure = Figure(figsize=(15, 11.5), layout="constrained")
    for axis, (label, degraded) in zip(figure.subplots(4, 6).flat, shown.items(), strict=True):
        axis.imshow(degraded[0].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(label, fontsize=10)
        axis.set_axis_off()
    kind = Path(path).suffix.removeprefix(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ImageError(f"'{path}' cannot be written: unknown file extension '.{kind}'. Take .png.")
    with replacing(path) as stream:
        figure.savefig(stream, format=kind, dpi=100)
