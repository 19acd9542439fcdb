"""What is studied: two networks, the degradations, and photographs to search and to test on, checked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from filterattr import FilterAttrError, FilterAttributor, Group, output_channels
from filterattr.analysis import load_scipy
from filterattr.files import fingerprint
from sr_zoo.data import read_photographs
from sr_zoo.degradations import Degradation, degradations_from, evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.evaluation import check_colour
from sr_zoo.images import list_photographs
from sr_zoo.models import TwoBranch
from sr_zoo.pair import same_weights
from sr_zoo.pretrained import build, load_checkpoint, open_weights
from sr_zoo.study.samples import Sample, draw_samples, margin_of
from sr_zoo.study.settings import Settings, StudyError

MOST_PHOTOGRAPHS = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sources:
    """What a user names.

    Attributes:
        base: Weights that lack the functions: a shipped name or a file.
        target: Weights that have them.
        model: Architecture of the weights, for checkpoints that are not recognised; they are then read as BasicSR's.
        arguments: Arguments of its constructor.
        search: Folder of photographs to find kernels on.
        test: Folder of other photographs to evaluate on.
        images: One folder for both: every second photograph is tested on.
        degradations: What target has learnt to undo, as `degradations_from` reads it.
        keys: As in `sr_zoo.pretrained.open_weights`, for base and for target.
    """

    base: str = "srresnet_x2_f32b8_base"
    target: str = "srresnet_x2_f32b8_target"
    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    search: Path | None = None
    test: Path | None = None
    images: Path | None = None
    degradations: tuple[str, ...] = ("blur", "noise")
    keys: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is studied.

    Attributes:
        base: The network that lacks the functions.
        target: The same network with them.
        degradations: Name to what target has learnt to undo.
        search: ``uint8`` photographs of shape ``(3, H, W)`` to find kernels on.
        test: Others to evaluate on.
        architecture: Name of the networks' architecture.
        arguments: Arguments of its constructor.
        names: Where weights and photographs came from, for the report.
    """

    base: nn.Module
    target: nn.Module
    degradations: Mapping[str, Degradation]
    search: Sequence[Tensor]
    test: Sequence[Tensor]
    architecture: str
    arguments: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> int:
        """Upscaling factor of the networks."""
        return int(self.target.upscale)  # type: ignore[arg-type]

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the degradations."""
        return tuple(self.degradations)

    @cached_property
    def inputs(self) -> Mapping[str, Degradation]:
        """Every input by its name; ``clean``, each degradation alone, and all at once where that can be."""
        return evaluation_inputs(self.scale, degradations=self.degradations)

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters that play no part in the image."""
        return self.target.unused_in_restoring if isinstance(self.target, TwoBranch) else ()

    @cached_property
    def attributor(self) -> FilterAttributor:
        """Attributor of the networks' kernels, as far as they have a part in the image."""
        if not self.unused:
            return FilterAttributor(self.target)

        def is_used(name: str, _module: nn.Module, parameter: nn.Parameter) -> bool:
            return parameter.ndim >= 2 and self._is_used(name)

        return FilterAttributor(self.target, select=is_used)

    @cached_property
    def channels(self) -> tuple[Group, ...]:
        """The output channels of the networks' layers, as far as they have a part in the image."""
        groups = output_channels(self.target)[""]
        return tuple(group for group in groups if any(map(self._is_used, group.members)))

    def _is_used(self, name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in self.unused)

    @cached_property
    def digest(self) -> str:
        """Digest of networks, degradations and photographs."""
        parts = {
            "base": dict(self.base.state_dict()),
            "target": dict(self.target.state_dict()),
            "inputs": {name: one.config() for name, one in self.inputs.items()},
            "search": list(self.search),
            "test": list(self.test),
        }
        return fingerprint(parts, "the study")

    def search_samples(self, settings: Settings) -> dict[str, list[Sample]]:
        """Samples to find kernels on: every input to ``search_crops`` crops.

        Args:
            settings: Numbers and sizes of the crops, and their seed.

        Returns:
            Input to samples.
        """
        return self._drawn(self.search, settings.search_crops, settings.crop, 2 * settings.seed)

    def test_samples(self, settings: Settings) -> dict[str, list[Sample]]:
        """Samples to evaluate on: every input to ``test_crops`` crops.

        Args:
            settings: Numbers and sizes of the crops, and their seed.

        Returns:
            Input to samples.
        """
        return self._drawn(self.test, settings.test_crops, settings.crop, 2 * settings.seed + 1)

    def _drawn(self, photographs: Sequence[Tensor], count: int, size: int, seed: int) -> dict[str, list[Sample]]:
        return draw_samples(photographs, self.inputs, count=count, size=size, scale=self.scale, seed=seed)


def open_subject(sources: Sources, settings: Settings) -> Subject:
    """Load and check everything that a study needs.

    Args:
        sources: What the user named.
        settings: Decides how large photographs must be.

    Returns:
        The subject.

    Raises:
        StudyError: Something cannot be used; all findings are in one message, before any work.
    """
    findings: list[str] = []

    def attempt(make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except FilterAttrError as error:
            findings.append(str(error).rstrip("."))
            return None

    networks = {role: attempt(lambda role=role: _network(sources, role)) for role in ("base", "target")}  # type: ignore[misc]
    base, target = networks["base"], networks["target"]
    scale = int(target[0].upscale) if target is not None else 2  # type: ignore[arg-type]
    degradations = attempt(lambda: degradations_from(sources.degradations))
    if degradations:
        attempt(lambda: evaluation_inputs(scale, degradations=degradations))
    folders = attempt(lambda: _photographs(sources, settings.seed))
    attempt(load_scipy)
    if base is not None and target is not None:
        findings += _pair_findings(base, target)
    if degradations is not None and len(degradations) < 2:
        findings.append(f"at least two degradations are needed; got {', '.join(degradations) or 'none'}")
    if settings.crop % scale:
        findings.append(f"crop must be a multiple of the scale {scale}; got {settings.crop}")
    if folders is not None:
        findings += _photograph_findings(*folders, settings.crop + 2 * margin_of(scale))
    if findings or base is None or target is None or degradations is None or folders is None:
        raise StudyError("; ".join(dict.fromkeys(findings)) + ".")
    _share_unused(base[0], target[0])
    search, test = (_large(some, settings.crop + 2 * margin_of(scale)) for some in folders)
    return Subject(
        base=base[0],
        target=target[0],
        degradations=degradations,
        search=search,
        test=test,
        architecture=target[1],
        arguments=target[2],
        names={
            "base": Path(sources.base).stem,
            "target": Path(sources.target).stem,
            "photographs searched": _folder_name(sources.images or sources.search, len(search)),
            "photographs tested": _folder_name(sources.images or sources.test, len(test)),
        },
    )


_Loaded = tuple[nn.Module, str, Mapping[str, Any]]


def _network(sources: Sources, role: str) -> _Loaded:
    """Load one end point, with the name and arguments of its architecture."""
    path, key = str(getattr(sources, role)), sources.keys[role == "target"]
    if sources.model is not None:
        network = build(sources.model, sources.arguments)
        load_checkpoint(network, path, key=key)
        check_colour(network)
        return network.eval(), sources.model, dict(sources.arguments)
    opened = open_weights(path, key=key)
    check_colour(opened.network)
    return opened.network, opened.architecture, opened.arguments


@torch.no_grad()
def _share_unused(base: nn.Module, target: nn.Module) -> None:
    """Give base what target has where it plays no part in the image, so that nothing silent moves along the path."""
    if isinstance(base, TwoBranch):
        moved = dict(target.named_parameters())
        for name, value in base.named_parameters():
            if any(fnmatchcase(name, pattern) for pattern in base.unused_in_restoring):
                value.copy_(moved[name])


def _pair_findings(base: _Loaded, target: _Loaded) -> list[str]:
    """Why two networks are no pair."""
    first, second = base[0].state_dict(), target[0].state_dict()
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (first, second)]
    if base[1] != target[1] or shapes[0] != shapes[1]:
        described = " and ".join(
            f"{name}({', '.join(f'{k}={v}' for k, v in some.items())})" for _, name, some in (base, target)
        )
        return [f"base and target must be weights of the same network; got {described}"]
    if same_weights(base[0], target[0]):
        return ["base and target must differ; they hold the same weights"]
    return []


def _photographs(sources: Sources, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Read the photographs to search on and those to test on."""
    if sources.images is not None:
        if sources.search is not None or sources.test is not None:
            raise StudyError("--images takes the place of --search and --test: give either")
        paths = list_photographs(sources.images)
        return _read(paths[::2], seed), _read(paths[1::2], seed)
    if (sources.search is None) != (sources.test is None):
        raise StudyError("--search and --test belong together: name both folders, or one with --images, or none")
    if sources.search is None or sources.test is None:
        return bundled_photographs()
    if sources.search.resolve() == sources.test.resolve():
        raise StudyError("--search and --test must be different folders; use --images to split one in two halves")
    return _read(list_photographs(sources.search), seed), _read(list_photographs(sources.test), seed)


def _read(paths: Sequence[Path], seed: int) -> list[Tensor]:
    """Read at most so many photographs as fit into memory, chosen at random, in the order of their names."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed), device="cpu")[:MOST_PHOTOGRAPHS]
    return read_photographs([paths[place] for place in sorted(order.tolist())])


def _photograph_findings(search: Sequence[Tensor], test: Sequence[Tensor], size: int) -> list[str]:
    return [
        f"photographs to {what} on: {len(_large(some, size))} of {len(some)} are at least {size}x{size} pixels, one or "
        "more is needed (use larger ones, or a smaller --crop)"
        for what, some in (("search", search), ("test", test))
        if not _large(some, size)
    ]


def _large(photographs: Sequence[Tensor], size: int) -> list[Tensor]:
    return [image for image in photographs if min(image.shape[-2:]) >= size]


def network_text(architecture: str, arguments: Mapping[str, Any]) -> str:
    """Spell a network out.

    Args:
        architecture: Its name.
        arguments: Arguments of its constructor.

    Returns:
        Such as ``"srresnet(num_feat=8)"``.

    Example:
        >>> network_text("srresnet", {"num_feat": 8, "upscale": 2})
        'srresnet(num_feat=8, upscale=2)'
    """
    return f"{architecture}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _folder_name(folder: Path | None, count: int) -> str:
    return f"{count} photographs of {'scikit-image' if folder is None else repr(folder.name)}"
