"""One shared network and a small set of kernels per degradation, put in for the image at hand.

A separate network per degradation costs a whole network each. Here every degradation costs the kernels that the
attribution found for it: ``base`` is shared, and a *patch* replaces some of its kernels. Which patches an image needs
is asked of the network itself (`filterattr.analysis.prediction`), without a reference.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filterattr import (
    FilterAttrError,
    FilterAttributor,
    FilterAttrWarning,
    FilterSelection,
    ScoredParameter,
    SettingError,
    StorageError,
    Unit,
    swapped,
)
from filterattr.analysis import UNSURE, Calibration, FunctionPredictor, Prediction, Signals, largest_wins
from filterattr.files import read_tensors, write_tensors
from sr_zoo.building import build_with
from sr_zoo.models.blocks import brief

CLEAN = "clean"
_MOST_STEPS = 1000
_KIND = "adaptive restorer"


@dataclass(frozen=True, eq=False)
class Patch:
    """Kernels that replace those of the shared network.

    Attributes:
        selection: Their places.
        values: Parameter name to their weights, in the order of the parameter.
    """

    selection: FilterSelection
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], selection: FilterSelection) -> Patch:
        """Cut the chosen kernels out of a network.

        Args:
            state: Its weights.
            selection: The kernels.

        Returns:
            The patch; it shares no memory with the weights.
        """
        marked = selection.weights()
        return cls(selection, {name: state[name].detach().cpu()[marked[name]].clone() for name in marked})

    @property
    def n_parameters(self) -> int:
        """Number of weights in it."""
        return sum(value.numel() for value in self.values.values())

    def put_into(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace the kernels of a network.

        Args:
            state: Its weights.

        Returns:
            New weights; nothing in them shares memory with the old ones.
        """
        patched = {name: value.detach().clone() for name, value in state.items()}
        for name, marked in self.selection.weights().items():
            patched[name].masked_scatter_(marked, self.values[name].to(patched[name].dtype))
        return patched


class Restored(NamedTuple):
    """A restored image.

    Attributes:
        image: Shape ``(1, 3, H, W)``, in [0, 1].
        answer: What the image was taken for.
        patches: The patches that restored it.
    """

    image: Tensor
    answer: str
    patches: tuple[str, ...]


class AdaptiveRestorer:
    """Restore images with a shared network and the patches that each image needs.

    Args:
        base: The shared network.
        patches: Degradation to patch. Where two patches replace the same kernel, the later one wins if both are put in.
        plans: What an image can be taken for, to the patches that it then needs; by default every degradation needs
            its own, and ``"clean"`` none.
        calibration: Chooses among the names of ``plans``; without it, the largest overlap with a patch wins, which
            cannot answer anything but single degradations.
        fallback: The answer for images that the predictor is unsure of; the plan with most patches by default.
        n_steps: Nodes of the predictor, at most 1,000; each costs one forward-backward pass per image.

    Raises:
        SettingError: There are fewer than two patches, a plan names an unknown one, or ``n_steps`` is no such number;
            all findings are in one message.

    Example:
        >>> from filterattr.analysis import magnitude
        >>> from sr_zoo.models import SRResNet
        >>> _ = torch.manual_seed(0)
        >>> base, target = SRResNet(num_feat=4, num_block=1).eval(), SRResNet(num_feat=4, num_block=1).eval()
        >>> scores = magnitude(FilterAttributor(base), target)
        >>> sets = {"blur": scores.top(0.1), "noise": (-scores).top(0.1)}
        >>> patches = {name: Patch.of(target.state_dict(), chosen) for name, chosen in sets.items()}
        >>> restorer = AdaptiveRestorer(base, patches)
        >>> restorer.restore(torch.rand(1, 3, 8, 8)).image.shape
        torch.Size([1, 3, 16, 16])
        >>> restorer.restore(torch.rand(1, 3, 8, 8), "clean").patches
        ()
    """

    def __init__(
        self,
        base: nn.Module,
        patches: Mapping[str, Patch],
        *,
        plans: Mapping[str, Sequence[str]] | None = None,
        calibration: Calibration | None = None,
        fallback: str | None = None,
        n_steps: int = 6,
    ) -> None:
        chosen: dict[str, tuple[str, ...]] = {CLEAN: (), **{name: (name,) for name in patches}}
        if plans is not None:
            chosen = {answer: tuple(names) for answer, names in plans.items()}
        self.plans = chosen
        self.fallback = fallback or max(chosen, key=lambda answer: len(chosen[answer]))
        self._check(patches, calibration, n_steps)
        self.network = copy.deepcopy(base).eval()
        self.patches = dict(patches)
        self.calibration = calibration
        self.n_steps = n_steps
        self._shared = {name: value.detach().clone() for name, value in base.state_dict().items()}
        scored = {name for patch in patches.values() for name in patch.selection.parameters}
        self._predictor = FunctionPredictor(
            FilterAttributor(self.network, select=lambda name, _module, _parameter: name in scored),
            self._shared,
            self.weights(tuple(patches)),
            {name: patch.selection for name, patch in patches.items()},
            n_steps=n_steps,
        )

    def _check(self, patches: Mapping[str, Patch], calibration: Calibration | None, n_steps: int) -> None:
        findings = [
            f"the plan {answer!r} needs {name!r}, which is no patch"
            for answer, names in self.plans.items()
            for name in names
            if name not in patches
        ]
        if len(patches) < 2:
            findings.append(f"at least two patches are needed to choose from; got {len(patches)}")
        if type(n_steps) is not int or not 1 <= n_steps <= _MOST_STEPS:
            findings.append(f"n_steps must be a whole number from 1 to {_MOST_STEPS}; got {brief(n_steps)}")
        if self.fallback not in self.plans:
            findings.append(f"the fallback must be one of {', '.join(self.plans)}; got {self.fallback!r}")
        answers = patches if calibration is None else calibration.labels
        findings += [f"there is no plan for the answer {one!r}" for one in answers if one not in self.plans]
        if findings:
            raise SettingError("; ".join(findings) + ".")

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Weights of the shared network with some patches put in.

        Args:
            names: The patches, in their order.

        Returns:
            A state dict.
        """
        state = {name: value.clone() for name, value in self._shared.items()}
        for name in names:
            state = self.patches[name].put_into(state)
        return state

    def signals(self, degraded: Tensor) -> Signals:
        """Ask the kernels what an image calls on; see `FunctionPredictor.signals`.

        Args:
            degraded: Shape ``(1, 3, h, w)``.

        Returns:
            The read-outs.
        """
        with warnings.catch_warnings():
            # a few nodes are enough to tell which kernels matter, though they do not add up to the last per cent
            warnings.simplefilter("ignore", FilterAttrWarning)
            return self._predictor.signals(degraded)

    def judge(self, signals: Signals) -> Prediction:
        """Say which degradation an image has, from what its kernels say.

        Args:
            signals: What `signals` gave.

        Returns:
            The answer: a name of ``plans`` or ``"unsure"``.
        """
        return largest_wins(signals) if self.calibration is None else self.calibration.predict(signals)

    @torch.no_grad()
    def restore(self, degraded: Tensor, answer: str | None = None) -> Restored:
        """Restore one image with the patches that it needs.

        Args:
            degraded: Shape ``(1, 3, h, w)``, values in [0, 1].
            answer: What it is, if somebody knows; otherwise it is predicted.

        Returns:
            The image, and what was done.

        Raises:
            SettingError: It is no single image, or there is no plan for the answer.
        """
        if degraded.ndim != 4 or len(degraded) != 1:
            raise SettingError(f"one image of shape (1, C, h, w) is restored at a time; got {tuple(degraded.shape)}.")
        if answer is None:
            answer = self.judge(self.signals(degraded)).answer
        if answer not in (*self.plans, UNSURE):
            raise SettingError(f"there must be a plan for the answer {answer!r}; there are {', '.join(self.plans)}.")
        names = self.plans[self.fallback if answer == UNSURE else answer]
        with swapped(self.network, self.weights(names)) as network:
            return Restored(network(degraded).clamp(0, 1), answer, names)

    @property
    def n_shared(self) -> int:
        """Number of parameters of the shared network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def n_extra(self) -> int:
        """Number of weights of all patches together."""
        return sum(patch.n_parameters for patch in self.patches.values())

    def save(self, path: str | Path, architecture: str, arguments: Mapping[str, Any]) -> None:
        """Write everything to one file (safetensors).

        A patch costs its weights and one bit per kernel of the network.

        Args:
            path: Where to write.
            architecture: Name of the network in `sr_zoo.pretrained.ARCHITECTURES`.
            arguments: Arguments of its constructor.

        Raises:
            StorageError: The disk refuses.
        """
        tensors = {f"shared/{name}": value for name, value in self._shared.items()}
        for patch_name, patch in self.patches.items():
            for name, value in patch.values.items():
                tensors[f"patch/{patch_name}/values/{name}"] = value
                tensors[f"patch/{patch_name}/places/{name}"] = _packed(patch.selection[name])
        first = next(iter(self.patches.values())).selection
        description = {
            "architecture": architecture,
            "arguments": dict(arguments),
            "parameters": [
                [name, one.unit.pattern, dict(one.unit.sizes), list(one.shape)]
                for name, one in first.parameters.items()
            ],
            "patches": list(self.patches),
            "plans": {answer: list(names) for answer, names in self.plans.items()},
            "fallback": self.fallback,
            "n_steps": self.n_steps,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }
        write_tensors(path, _KIND, tensors, description)

    @classmethod
    def load(cls, path: str | Path) -> AdaptiveRestorer:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal restorer.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
            WeightsError: Its weights do not fit the network that it names, or are not finite.
            SettingError: What it says of itself makes no sense.
        """
        tensors, description = read_tensors(path, _KIND)
        try:
            prefix = "shared/"
            shared = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            network = build_with(description["architecture"], description["arguments"], shared, path)
            parameters = {
                name: ScoredParameter(Unit(pattern, sizes), tuple(shape))
                for name, pattern, sizes, shape in description["parameters"]
            }
            patches = {}
            for name in description["patches"]:
                places = {
                    one: _unpacked(tensors[f"patch/{name}/places/{one}"], scored.units_shape)
                    for one, scored in parameters.items()
                }
                values = {one: tensors[f"patch/{name}/values/{one}"] for one in parameters}
                patches[name] = Patch(FilterSelection(places, parameters), values)
            calibration = description["calibration"]
            return cls(
                network,
                patches,
                plans=description["plans"],
                calibration=None if calibration is None else Calibration.from_json(calibration),
                fallback=description["fallback"],
                n_steps=description["n_steps"],
            )
        except FilterAttrError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(f"'{path}' is not a complete {_KIND}: {error!r}.") from error


def _packed(marked: Tensor) -> Tensor:
    """Eight booleans a byte."""
    flat = marked.reshape(-1)
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).reshape(-1, 8)
    return (padded * (1 << torch.arange(8, device="cpu"))).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_packed`."""
    bits = (packed[:, None].int() >> torch.arange(8, device="cpu")) & 1
    return bits.reshape(-1)[: shape.numel()].bool().reshape(shape)
