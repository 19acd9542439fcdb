"""Restoration with one shared network and a small set of kernels per degradation, chosen for each image.

A separate network per degradation costs a complete network each. Here every degradation costs only the kernels that the
attribution found for it: all degradations share ``base``, and a *patch* replaces some of its kernels. The scores of the
network predict which patches an image needs (`filterattr.analysis.prediction`), without a reference.
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
        selection: The places of the kernels.
        values: Parameter name to the weights of the kernels, in the order of the parameter.
    """

    selection: FilterSelection
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], selection: FilterSelection) -> Patch:
        """Copy the selected kernels of a network.

        Args:
            state: The weights of the network.
            selection: The kernels.

        Returns:
            The patch; it shares no memory with the weights.
        """
        marked = selection.weights()
        return cls(selection, {name: state[name].detach().cpu()[marked[name]].clone() for name in marked})

    @property
    def n_parameters(self) -> int:
        """Number of weights of the patch."""
        return sum(value.numel() for value in self.values.values())

    def put_into(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace the kernels of a network.

        Args:
            state: The weights of the network.

        Returns:
            New weights, which share no memory with the old ones.
        """
        patched = {name: value.detach().clone() for name, value in state.items()}
        for name, marked in self.selection.weights().items():
            patched[name].masked_scatter_(marked, self.values[name].to(patched[name].dtype))
        return patched


class Restored(NamedTuple):
    """A restored image.

    Attributes:
        image: Shape ``(1, 3, H, W)``, in [0, 1].
        answer: The predicted degradation.
        patches: The patches that restored the image.
    """

    image: Tensor
    answer: str
    patches: tuple[str, ...]


class AdaptiveRestorer:
    """Restore images with a shared network and the patches that each image needs.

    Args:
        base: The shared network.
        patches: Degradation to patch. If two patches replace the same kernel and both are used, the later one counts.
        plans: Answer to the patches that it needs. By default every degradation needs its patch, and ``"clean"`` none.
        calibration: Chooses among the names of ``plans``. Without it, the patch with the largest overlap is the answer,
            so only single degradations can be predicted.
        fallback: The answer if the predictor is unsure; by default the plan with the most patches.
        n_steps: Nodes of the predictor, at most 1,000; each costs one forward-backward pass per image.

    Raises:
        SettingError: There are fewer than two patches, a plan names an unknown patch, or ``n_steps`` is out of range;
            one message holds all findings.

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
        """Return the weights of the shared network with some patches.

        Args:
            names: The patches, in order.

        Returns:
            A state dict.
        """
        state = {name: value.clone() for name, value in self._shared.items()}
        for name in names:
            state = self.patches[name].put_into(state)
        return state

    def signals(self, degraded: Tensor) -> Signals:
        """Compute the read-outs of an image; see `FunctionPredictor.signals`.

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
        """Predict the degradation of an image from its read-outs.

        Args:
            signals: The read-outs that `signals` returned.

        Returns:
            The answer: a name of ``plans`` or ``"unsure"``.
        """
        return largest_wins(signals) if self.calibration is None else self.calibration.predict(signals)

    @torch.no_grad()
    def restore(self, degraded: Tensor, answer: str | None = None) -> Restored:
        """Restore one image with the patches that it needs.

        Args:
            degraded: Shape ``(1, 3, h, w)``, values in [0, 1].
            answer: The degradation, if it is known; otherwise it is predicted.

        Returns:
            The image, the answer and the patches.

        Raises:
            SettingError: The shape is not that of a single image, or there is no plan for the answer.
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
            path: The file to write.
            architecture: Name of the network in `sr_zoo.pretrained.ARCHITECTURES`.
            arguments: Arguments of its constructor.

        Raises:
            StorageError: The file cannot be written.
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
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            An equal restorer.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
            WeightsError: Its weights do not fit the network that it names, or are not finite.
            SettingError: The settings in the file are out of range.
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
