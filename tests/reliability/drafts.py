"""Three drafts of the method as a careful user writes them in an hour, and the library, all behind one interface.

All drafts are right on a plain network: they pass every completeness check. The cases of this folder show what else
can go wrong. `tests.reliability.scoreboard` counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import filterattr
from filterattr import FilterAttrError, FilterAttributor
from filterattr.integral.quadrature import Quadrature
from tests.reliability.fingerprint import unchanged

Loss = Callable[..., Tensor]
Rule = list[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """What every implementation can tell.

    Attributes:
        values: Parameter name to the signed attribution of every weight.
        loss_base: Loss at base.
        loss_target: Loss at target.
        error: Relative error of completeness, as it is reported.
    """

    values: Mapping[str, Tensor]
    loss_base: float
    loss_target: float
    error: float

    @property
    def total(self) -> float:
        return sum(float(value.double().sum()) for value in self.values.values())


def attribute_by_loading(model: nn.Module, base: Any, target: Any, loss: Loss, rule: Rule) -> Outcome:
    """Draft one: ``load_state_dict`` moves the weights, ``backward`` differentiates, all is put back at the end."""
    base = base.state_dict() if isinstance(base, nn.Module) else base
    target = target.state_dict() if isinstance(target, nn.Module) else target
    own, was_training = copy.deepcopy(model.state_dict()), model.training

    def move(t: float) -> None:
        model.load_state_dict({name: base[name] + t * (target[name] - base[name]) for name in base})

    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    losses = []
    model.eval()
    try:
        for t in (0.0, 1.0):
            move(t)
            losses.append(loss(model).item())
        for t, coefficient in rule:
            move(t)
            model.zero_grad()
            loss(model).backward()
            for name, parameter in model.named_parameters():
                sums[name] += coefficient * parameter.grad
    finally:
        model.load_state_dict(own)
        model.zero_grad()
        model.train(was_training)
    values = {name: total.detach() * (target[name] - base[name]) for name, total in sums.items()}
    change = losses[1] - losses[0]
    total = sum(value.sum().item() for value in values.values())
    return Outcome(values, losses[0], losses[1], abs(total - change) / abs(change))


class _Called(nn.Module):
    """The model, called with weights that are given."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.weights, args, kwargs)


def attribute_by_calling(model: nn.Module, base: Any, target: Any, loss: Loss, rule: Rule) -> Outcome:
    """Draft two: `torch.func.functional_call` computes with other weights, `torch.autograd.grad` differentiates."""
    base = base.state_dict() if isinstance(base, nn.Module) else base
    target = target.state_dict() if isinstance(target, nn.Module) else target
    names = [name for name, _ in model.named_parameters()]

    def point(t: float) -> dict[str, Tensor]:
        return {name: (base[name] + t * (target[name] - base[name])).detach().requires_grad_() for name in names}

    sums = {name: torch.zeros_like(base[name]) for name in names}
    for t, coefficient in rule:
        weights = point(t)
        gradients = torch.autograd.grad(loss(_Called(model, weights)), list(weights.values()))
        for name, gradient in zip(names, gradients, strict=True):
            sums[name] += coefficient * gradient
    losses = [loss(_Called(model, point(t))).item() for t in (0.0, 1.0)]
    values = {name: sums[name] * (target[name] - base[name]) for name in names}
    change = losses[1] - losses[0]
    total = sum(value.sum().item() for value in values.values())
    return Outcome(values, losses[0], losses[1], abs(total - change) / abs(change))


class _Hooked:
    """Hooks on convolutions and linear layers; they differentiate each layer by itself, so that no gradient is kept."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sums: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.coefficient = 0.0
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.register_forward_hook(partial(self.remember, name))
                module.register_full_backward_hook(partial(self.collect, name))

    def remember(self, name: str, _module: nn.Module, inputs: Any, _output: Any) -> None:
        self.inputs[name] = inputs[0].detach()

    def collect(self, name: str, module: nn.Module, _gradient_inputs: Any, gradient_outputs: Any) -> None:
        parameters = dict(module.named_parameters(recurse=False))
        with torch.enable_grad():
            output = module.forward(self.inputs[name])
        gradients = torch.autograd.grad(output, list(parameters.values()), gradient_outputs[0])
        for key, gradient in zip(parameters, gradients, strict=True):
            rows = gradient.view(len(gradient), -1) * self.coefficient  # one row a filter
            self.sums[f"{name}.{key}"] = self.sums.get(f"{name}.{key}", 0) + rows

    def move(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data = weights[name]


def attribute_by_hooks(model: nn.Module, base: Any, target: Any, loss: Loss, rule: Rule) -> Outcome:
    """Draft three: ``.data`` moves the weights, hooks on modules collect the gradients."""
    base = base.state_dict() if isinstance(base, nn.Module) else base
    target = target.state_dict() if isinstance(target, nn.Module) else target
    own = {name: parameter.data for name, parameter in model.named_parameters()}
    hooked = _Hooked(model)
    try:
        losses = []
        for state in (base, target):
            hooked.move(state)
            losses.append(loss(model).item())
        for t, hooked.coefficient in rule:
            hooked.move({name: base[name] + t * (target[name] - base[name]) for name in own})
            loss(model).backward()
    finally:
        hooked.move(own)
    values = {name: hooked.sums[name].view_as(base[name]) * (target[name] - base[name]) for name in own}
    change = losses[1] - losses[0]
    total = sum(value.sum().item() for value in values.values())
    return Outcome(values, losses[0], losses[1], abs(total - change) / abs(change))


def attribute_with_filterattr(
    model: nn.Module, base: Any, target: Any, loss: Loss, data: Iterable[Any] | None, **options: Any
) -> Outcome:
    """The library, every weight scored by itself."""
    attributor = FilterAttributor(model, unit="weight", select="*")
    result = attributor.attribute(base, target, loss, data, progress=False, **options)
    return Outcome(result.scores("sum"), result.loss_base, result.loss_target, result.completeness_error)


@dataclass(frozen=True)
class Implementation:
    """One implementation of the method.

    Attributes:
        name: What the scoreboard calls it.
        is_ours: Whether it is the library.
        sources: Files and folders whose frames are its own; interrupts are injected there.
        errors: What a refusal may be; of a draft any error will do.
    """

    name: str
    run: Callable[..., Outcome]
    is_ours: bool
    sources: tuple[str, ...]
    errors: type[Exception] = Exception

    def __call__(
        self,
        model: nn.Module,
        base: Any,
        target: Any,
        loss: Loss,
        data: Iterable[Any] | None = None,
        *,
        n_steps: int = 8,
        method: str = "gausslegendre",
        **options: Any,
    ) -> Outcome:
        """Integrate; options that drafts know nothing of (``buffers``, ``allow_unused``) do not reach them."""
        if self.is_ours:
            return self.run(model, base, target, loss, data, n_steps=n_steps, method=method, **options)
        quadrature = Quadrature.rule(method, n_steps)
        rule = list(zip(quadrature.nodes, quadrature.coefficients, strict=True))
        if data is None:
            return self.run(model, base, target, loss, rule)
        parts = [self.run(model, base, target, lambda at, x=sample: loss(at, x), rule) for sample in data]
        values = {name: sum(part.values[name] for part in parts) / len(parts) for name in parts[0].values}
        mean = [sum(getattr(part, key) for part in parts) / len(parts) for key in ("loss_base", "loss_target", "error")]
        return Outcome(values, *mean)

    @contextmanager
    def leaves(self, *models: nn.Module) -> Iterator[None]:
        """Fail if a model is another one after the block.

        Outside part A the drafts are only held to values, objects and flags: that ``load_state_dict`` counts versions
        up and clears gradients, and that draws are used up, is what part A is about.
        """
        with unchanged(*models, but=() if self.is_ours else ("version", "grad", "random", "layout")):
            yield

    def tried(self, *arguments: Any, **options: Any) -> Outcome | str:
        """Run it and return the outcome, or the message of a refusal."""
        try:
            return self(*arguments, **options)
        except self.errors as error:
            return str(error)

    def refuses(self, *arguments: Any, **options: Any) -> str:
        """Run it and return the message of the refusal; fail if there is none."""
        outcome = self.tried(*arguments, **options)
        if not isinstance(outcome, str):
            raise AssertionError(f"{self.name} raised nothing")
        return outcome


def _folder(module: Any) -> str:
    return str(Path(module.__file__).parent)


_TORCH = Path(torch.__file__).parent
FILTERATTR = Implementation("filterattr", attribute_with_filterattr, True, (_folder(filterattr),), FilterAttrError)
LOADING = Implementation(
    "load_state_dict draft", attribute_by_loading, False, (__file__, str(_TORCH / "nn" / "modules" / "module.py"))
)
CALLING = Implementation(
    "functional_call draft",
    attribute_by_calling,
    False,
    (__file__, str(_TORCH / "nn" / "utils" / "stateless.py"), str(_TORCH / "_functorch" / "functional_call.py")),
)
HOOKING = Implementation("module hooks draft", attribute_by_hooks, False, (__file__,))
IMPLEMENTATIONS = {one.name: one for one in (FILTERATTR, LOADING, CALLING, HOOKING)}
