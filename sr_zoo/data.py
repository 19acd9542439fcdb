"""Photographs for training: folders held in memory as 8-bit tensors, and random patches drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sr_zoo.images import ImageError, list_photographs, read_image, to_float

MEMORY_LIMIT = 8 * 2**30
_MOST_NAMED = 20


def load_photographs(folder: str | Path, *, progress: bool = True) -> list[Tensor]:
    """Read every photograph of a folder.

    Args:
        folder: A folder of image files.
        progress: Show a progress bar in a terminal.

    Returns:
        ``uint8`` tensors of shape ``(3, H, W)``, in the order of the file names.

    Raises:
        ImageError: The folder is missing or empty, files cannot be read (all of them are named), or all of them need
            more than 8 GiB.

    Example:
        >>> load_photographs("no such folder")
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: a folder of photographs must exist; got 'no such folder'. ...
    """
    return read_photographs(list_photographs(folder), progress=progress)


def read_photographs(paths: Sequence[Path], *, progress: bool = False) -> list[Tensor]:
    """Read photographs, and name every one that cannot be read.

    Args:
        paths: Their files.
        progress: Show a progress bar.

    Returns:
        ``uint8`` tensors of shape ``(3, H, W)``, in the order of the paths.

    Raises:
        ImageError: Files cannot be read, or all of them need more than 8 GiB.

    Example:
        >>> from pathlib import Path
        >>> read_photographs([Path("a.png"), Path("b.png")])
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: 2 of 2 photographs cannot be read: a photograph must be ... 'a.png' ... 'b.png' ...
    """
    photographs: list[Tensor] = []
    findings: list[str] = []
    total = 0
    for path in tqdm(paths, desc="reading", unit="photo", disable=None if progress else True):
        try:
            photographs.append(read_image(path))
        except ImageError as error:
            findings.append(str(error))
            continue
        total += photographs[-1].nbytes
        if total > MEMORY_LIMIT:
            raise ImageError(
                f"the photographs of '{path.parent}' need more than {MEMORY_LIMIT // 2**30} GiB of memory; cut them "
                "into fewer or smaller files."
            )
    if findings:
        raise unreadable(findings, len(paths), "photographs")
    return photographs


def unreadable(findings: Sequence[str], count: int, what: str) -> ImageError:
    """Make one error of all that could not be read.

    Args:
        findings: What was wrong with each file, in a sentence.
        count: How many files there are.
        what: What they are, in the plural.

    Returns:
        The error; at most 20 files are named.

    Example:
        >>> unreadable(["a.png is damaged."], 3, "photographs")
        ImageError('1 of 3 photographs cannot be read: a.png is damaged.')
    """
    more = f" And {len(findings) - _MOST_NAMED} more." if len(findings) > _MOST_NAMED else ""
    return ImageError(f"{len(findings)} of {count} {what} cannot be read: {' '.join(findings[:_MOST_NAMED])}{more}")


def hold_out(photographs: Sequence[Tensor], every: int = 50) -> tuple[list[Tensor], list[Tensor]]:
    """Keep every n-th photograph for validation.

    Args:
        photographs: All of them.
        every: One in how many is kept out; at least 2.

    Returns:
        The photographs to train on and those to validate on; with fewer than ``every`` photographs the last one
        validates, and a single photograph does both.

    Raises:
        ImageError: There is no photograph, or ``every`` is below 2 and would leave none to train on.

    Example:
        >>> training, validation = hold_out(list(range(100)), every=50)
        >>> len(training), validation
        (98, [49, 99])
    """
    if not photographs or every < 2:
        raise ImageError(
            "at least one photograph is needed, and at most every second one can be held out; got "
            f"{len(photographs)} photographs and every={every}."
        )
    if len(photographs) == 1:
        return list(photographs), list(photographs)
    last = len(photographs) - 1
    kept = {index for index in range(len(photographs)) if index % every == every - 1} or {last}
    training = [image for index, image in enumerate(photographs) if index not in kept]
    return training, [photographs[index] for index in sorted(kept)]


@dataclass(frozen=True)
class PatchSampler:
    """Draw random square patches, flipped and rotated.

    Photographs that are smaller than a patch are left out; all others are drawn equally often.

    Args:
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        size: Width and height of a patch in pixels.

    Raises:
        ImageError: No photograph is as large as a patch.

    Example:
        >>> sampler = PatchSampler([torch.zeros(3, 40, 50, dtype=torch.uint8)], size=32)
        >>> sampler.draw(4, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 32])
    """

    photographs: Sequence[Tensor]
    size: int

    def __post_init__(self) -> None:
        """Keep only photographs that a patch fits into."""
        fitting = [image for image in self.photographs if min(image.shape[-2:]) >= self.size]
        if not fitting:
            raise ImageError(
                f"at least one photograph must be {self.size}x{self.size} pixels or larger; none of "
                f"{len(self.photographs)} is. Use larger photographs or a smaller patch."
            )
        object.__setattr__(self, "photographs", fitting)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw patches.

        Args:
            count: Number of patches.
            generator: Source of randomness, on the CPU.

        Returns:
            ``float32`` of shape ``(count, 3, size, size)`` in [0, 1].

        Raises:
            ImageError: They need more than 8 GiB.
        """
        if 4 * 3 * count * self.size**2 > MEMORY_LIMIT:
            raise ImageError(
                f"{count} patches of {self.size}x{self.size} pixels need more than {MEMORY_LIMIT // 2**30} GiB of "
                "memory: use fewer or smaller ones."
            )
        return to_float(torch.stack([self._draw_one(generator) for _ in range(count)]))

    def _draw_one(self, generator: torch.Generator) -> Tensor:
        """Cut one patch at a uniform place and turn it into one of its eight orientations."""
        choice, rows, columns, turn = torch.rand(4, generator=generator, dtype=torch.float64, device="cpu").tolist()
        image = self.photographs[int(choice * len(self.photographs))]
        top = int(rows * (image.shape[1] - self.size + 1))
        left = int(columns * (image.shape[2] - self.size + 1))
        patch = image[:, top : top + self.size, left : left + self.size]
        orientation = int(turn * 8)
        if orientation & 4:
            patch = patch.flip(2)
        return torch.rot90(patch, orientation & 3, (1, 2))


def without_border(images: Tensor, border: int) -> Tensor:
    """Cut off the border of degraded images.

    Args:
        images: Shape ``(..., H, W)``.
        border: Pixels to leave out on every side.

    Returns:
        A view of shape ``(..., H - 2 * border, W - 2 * border)``.

    Example:
        >>> without_border(torch.rand(3, 10, 8), 2).shape
        torch.Size([3, 6, 4])
    """
    return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
