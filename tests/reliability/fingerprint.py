"""Everything about a model and the world around it that a call must not change, to the last bit."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer


class Fingerprint:
    """What a model was at one moment.

    Identities of modules, parameters, buffers, attributes, hooks and containers with their order; of every tensor the
    address, layout, type, version, flags, hooks, marks, ``.grad`` and raw bytes (so that -0.0 differs from 0.0, and one
    NaN from another); train flags; all random generators; gradient modes; hooks of saved tensors and of optimizers.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._alive: list[object] = []  # identities of things that died could be taken by others
        self.facts: dict[str, object] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._add_module(path or "model", module)
        self._add_world()

    def changes(self, model: nn.Module) -> list[str]:
        """List what is different now."""
        now = Fingerprint(model).facts
        return [
            f"{name}: {_short(self.facts.get(name))} -> {_short(now.get(name))}"
            for name in {**self.facts, **now}
            if self.facts.get(name) != now.get(name)
        ]

    def _add_module(self, path: str, module: nn.Module) -> None:
        self._add(f"{path}", (self._id(module), self._id(type(module)), module.training))
        self._add(f"{path}.__dict__", self._identities(module.__dict__))
        for name, value in module.__dict__.items():
            if isinstance(value, dict | list | deque | set):
                self._add(f"{path}.{name}", self._identities(value))
            if isinstance(value, Tensor):
                self._add_tensor(f"{path}.{name}", value)
        for kind in (module._parameters, module._buffers):
            for name, value in kind.items():
                if value is not None:
                    self._add_tensor(f"{path}.{name}", value)

    def _add_tensor(self, name: str, tensor: Tensor) -> None:
        plain = not isinstance(tensor, nn.parameter.UninitializedTensorMixin) and not tensor.is_meta
        facts = {
            "identity": self._id(tensor),
            "type": (type(tensor), tensor.dtype, tensor.device),
            "flags": (tensor.requires_grad, tensor.is_leaf, tensor.is_inference()),
            "version": None if tensor.is_inference() else tensor._version,
            "hooks": self._identities(tensor._backward_hooks or {}),
            "post hooks": self._identities(tensor._post_accumulate_grad_hooks or {}),
            "marks": self._identities(tensor.__dict__),
            "layout": (tensor.shape, tensor.stride(), tensor.data_ptr()) if plain else None,
            "bytes": _bytes(tensor) if plain else None,
        }
        for kind, fact in facts.items():
            self._add(f"{name} {kind}", fact)
        if plain and tensor.is_leaf and tensor.grad is not None:
            self._add_tensor(f"{name}.grad", tensor.grad)

    def _add_world(self) -> None:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one
        self._add(
            "random generators",
            (torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, keys.tobytes(), rest),
        )
        self._add("gradient modes", (torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        self._add("hooks of saved tensors", _hooks_of_saved_tensors())
        self._add("optimizer hooks", len(optimizer._global_optimizer_pre_hooks))
        self._add("threads", torch.get_num_threads())

    def _add(self, name: str, fact: object) -> None:
        self.facts[name] = fact

    def _id(self, thing: object) -> int:
        self._alive.append(thing)
        return id(thing)

    def _identities(self, container: Any) -> list[object]:
        if isinstance(container, dict):
            return [(repr(key), self._identity(value)) for key, value in container.items()]
        items = sorted(container, key=repr) if isinstance(container, set) else container
        return [self._identity(value) for value in items]

    def _identity(self, value: object) -> object:
        """Small constants come and go; everything else counts by identity."""
        return value if isinstance(value, bool | int | float | str | None) else self._id(value)


@contextmanager
def unchanged(*models: nn.Module, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Fail if a model, or the world around it, is another one at the end of the block, but for some kinds of facts."""
    before = [Fingerprint(model) for model in models]
    yield
    changes = [change for one, model in zip(before, models, strict=True) for change in one.changes(model)]
    changes = [one for one in changes if not any(kind in one.partition(": ")[0] for kind in but)]
    if changes:
        raise AssertionError("; ".join(changes[:5]))


def _hooks_of_saved_tensors() -> str:
    """The hooks that take what autograd saves; PyTorch 2.6 does not tell them."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return repr(top(True)) if top else "unknown"


def _bytes(tensor: Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _short(fact: object) -> str:
    text = repr(fact)
    return text if len(text) < 200 else text[:200] + "..."
