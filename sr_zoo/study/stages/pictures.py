"""Pictures for the report: one crop through base, target and masked networks, and dialled from 0 to 1.5."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from filterattr import blend
from filterattr.files import read_tensors, write_tensors
from sr_zoo.degradations import Degradation
from sr_zoo.images import to_float, to_uint8
from sr_zoo.study.archive import Results
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.gradient_maps import outputs_of
from sr_zoo.study.subject import Subject

_KIND = "pictures"
_WIDTH = 192


class Pictures:
    """Captions and 8-bit pictures, in their order.

    Args:
        images: Caption to ``uint8`` tensor of shape ``(3, H, W)``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pictures.safetensors"
        >>> Pictures({"target": torch.zeros(3, 2, 2, dtype=torch.uint8)}).save(path)
        >>> list(Pictures.load(path).images)
        ['target']
    """

    def __init__(self, images: dict[str, Tensor]) -> None:
        self.images = images

    def save(self, path: str | Path) -> None:
        """Write them to a file.

        Args:
            path: Where to write.
        """
        numbered = {f"{place:03d}": image.contiguous() for place, image in enumerate(self.images.values())}
        write_tensors(path, _KIND, numbered, {"captions": list(self.images)})

    @classmethod
    def load(cls, path: str | Path) -> Pictures:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The pictures.
        """
        tensors, description = read_tensors(path, _KIND)
        return cls({caption: tensors[f"{place:03d}"] for place, caption in enumerate(description["captions"])})


def middle(photograph: Tensor, width: int) -> Tensor:
    """Cut a square out of the middle, a little above it, where photographers put faces.

    Args:
        photograph: Shape ``(3, H, W)``.
        width: Of the square; smaller where the photograph is.

    Returns:
        Shape ``(3, width, width)``.
    """
    height, length = photograph.shape[-2:]
    width = min(width, height, length)
    top, left = (height - width) // 3, (length - width) // 2
    return photograph[:, top : top + width, left : left + width]


def _pictures(context: Context) -> Results:
    subject = context.subject
    photograph = subject.test[0]
    width = min(_WIDTH, *photograph.shape[-2:])
    reference = to_float(middle(photograph, width - width % subject.scale)[None])
    results: dict[str, object] = {}
    for name in subject.functions:
        degraded = _degraded(subject.inputs[name], reference, context.settings.seed)
        results[f"strip_{name}"] = Pictures(_strip(context, name, degraded, reference))
        results[f"dial_{name}"] = Pictures(
            {
                f"{strength:g}": _restored(
                    context, blend(subject.target, subject.base, context.sets[name], strength), degraded
                )
                for strength in context.settings.strengths
            }
        )
    return results


def _degraded(degradation: Degradation, reference: Tensor, seed: int) -> Tensor:
    return degradation(reference, torch.Generator().manual_seed(seed))


def _strip(context: Context, function: str, degraded: Tensor, reference: Tensor) -> dict[str, Tensor]:
    subject = context.subject
    target = _restored(context, dict(subject.target.state_dict()), degraded)
    images = {
        f"input ({function})": to_uint8(functional.interpolate(degraded, scale_factor=subject.scale, mode="nearest"))[
            0
        ],
        "base": _restored(context, dict(subject.base.state_dict()), degraded),
        "target": target,
    }
    for name, chosen in context.sets.items():
        masked = _restored(context, blend(subject.target, subject.base, chosen), degraded)
        images[f"without the {name} kernels"] = masked
        if name == function:
            difference = (masked.int() - target.int()).abs() * 4
            images["difference to target, four times"] = difference.clamp(max=255).to(torch.uint8)
    images["original"] = to_uint8(reference)[0]
    return images


def _restored(context: Context, state: dict[str, Tensor], degraded: Tensor) -> Tensor:
    (image,) = outputs_of(context.subject.target, state, [(degraded, degraded, degraded)])
    return to_uint8(image)[0]


def _cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    return Cost(forwards=count * (2 + count + len(settings.strengths)) * (_WIDTH / settings.crop) ** 2)


PICTURES = Stage(
    "pictures",
    "What does it look like?",
    ("search",),
    ("strengths", "seed"),
    _cost,
    _pictures,
)
