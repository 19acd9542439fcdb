"""Random jobs by seed: networks with everything that people do to them, and the numbers or the error they must give."""

from __future__ import annotations

import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from filterattr import ChannelAttributor, FilterAttributor, FilterAttrWarning, swapped
from filterattr.errors import FilterAttrError
from tests.reference.literal import Literal, literal_attribution, literal_influence, unit_sums
from tests.reference.slow_attribution import rule
from tests.reliability.fingerprint import unchanged

_IN_TRAINING = (nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d)
_HALF = ("bfloat16", "float16")
F = 4  # features, channels and width of everything
HELD: dict[str, Any] = {}  # a global that a planted fault keeps a weight in


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Random numbers of a seed, and the caller's state afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


# --- networks ---------------------------------------------------------------------------------------------------------

Block = Callable[[random.Random], nn.Module]


class TimeFirst(nn.Module):
    """Runs a layer with the time in front of the samples."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x.transpose(0, 1))
        return (found if isinstance(found, Tensor) else found[0]).transpose(0, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(F, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = kind(F, F, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Written(nn.Module):
    """Keeps tensors in an odd container, and writes to them in every forward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        state = torch.full((F,), 0.5, dtype=torch.float64)
        self.kind = kind
        self.cache: Any = {
            "attribute": state,
            "list": [state],
            "tuple": (1, state),
            "dict": {"k": state},
            "deep": {"layers": [{"k": (state, "name")}]},
            "deque": deque([state]),
            "namespace": SimpleNamespace(k=state),
            "growing": [],
            "counter": 0,
            "popped": {"first": 1.0},
        }[kind]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "growing":
            self.cache.append(x.detach().mean())
            return x * (1 + 0.1 * len(self.cache))
        if self.kind == "counter":
            self.cache += 1
            return x * (1 + 0.1 * self.cache)
        if self.kind == "popped":
            return x * self.cache.pop("first", 2.0)
        held = {
            "attribute": lambda c: c,
            "list": lambda c: c[0],
            "tuple": lambda c: c[1],
            "dict": lambda c: c["k"],
            "deep": lambda c: c["layers"][0]["k"][0],
            "deque": lambda c: c[0],
            "namespace": lambda c: c.k,
        }[self.kind](self.cache)
        held.mul_(0.9).add_(x.detach().double().mean())
        return x + held.to(x.dtype)


class Helper:
    """An object of the user's that is no module."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self) -> Tensor:
        return self.weight


class Held(nn.Module):
    """Uses a weight of a layer a second time, from where it also keeps it."""

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        weight = layer.weight
        self.layer = layer
        self.kind = kind
        self.held: Any = {
            "list": [weight],
            "tuple": (weight, 1),
            "dict": {"w": weight},
            "deep": {"all": [(0, {"w": weight})]},
            "closure": lambda: weight,
            "partial": partial(torch.mul, weight),
            "helper": Helper(weight),
            "namespace": SimpleNamespace(weight=weight),
            "none": None,
        }[kind if kind != "global" else "none"]
        if kind == "global":
            HELD["weight"] = weight

    def forward(self, x: Tensor) -> Tensor:
        weight = {
            "list": lambda held: held[0],
            "tuple": lambda held: held[0],
            "dict": lambda held: held["w"],
            "deep": lambda held: held["all"][0][1]["w"],
            "closure": lambda held: held(),
            "partial": lambda held: held(1.0),
            "helper": lambda held: held(),
            "namespace": lambda held: held.weight,
            "global": lambda _: HELD["weight"],
        }[self.kind](self.held)
        return torch.tanh(self.layer(x)) @ weight


def _tied(plan: random.Random) -> nn.Module:
    first, second = nn.Linear(F, F), nn.Linear(F, F, bias=plan.random() < 0.5)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def _twice(_: random.Random) -> nn.Module:
    layer = nn.Linear(F, F)
    return nn.Sequential(layer, nn.SiLU(), layer)


def _transposed(_: random.Random) -> nn.Module:
    layer = nn.Linear(F, F)
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer


def _pruned(_: random.Random) -> nn.Module:
    layer = nn.Linear(F, F)
    prune.random_unstructured(layer, "weight", 0.3)
    return layer


class Hidden(nn.Module):
    """Keeps a layer where nobody registers it: it is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.hidden = nn.Linear(F, F), [nn.Linear(F, F, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        return self.known(x) + self.hidden[0](x.double()).detach().to(x.dtype)


def _conv(plan: random.Random) -> nn.Module:
    groups = plan.choice((1, 2, 4))
    return plan.choice(
        (
            lambda: nn.Conv2d(F, F, 3, padding=1, groups=groups, bias=plan.random() < 0.7),
            lambda: nn.ConvTranspose2d(F, F, 3, padding=1, groups=groups),
            lambda: nn.Conv2d(F, F, 3, padding="same", padding_mode="reflect"),
            lambda: nn.Conv2d(F, F, (3, 1), padding=(1, 0)).to(memory_format=torch.channels_last),
        )
    )()


_EVERYWHERE: dict[str, Block] = {
    "linear": lambda _: nn.Linear(F, F),
    "residual": lambda _: Residual(nn.Linear(F, F)),
    "layer norm": lambda _: nn.LayerNorm(F),
    "tied": _tied,
    "twice": _twice,
    "pruned": _pruned,
    "weight norm": lambda _: parametrizations.weight_norm(nn.Linear(F, F)),
    "hidden": lambda _: Hidden(),
    "transposed storage": _transposed,
}
_BLOCKS: dict[str, dict[str, Block]] = {
    "vector": {
        **_EVERYWHERE,
        "batch norm": lambda _: nn.BatchNorm1d(F).eval(),
        "slope": lambda _: nn.PReLU(F),
    },
    "image": {
        "convolution": _conv,
        "convolution again": _conv,
        "residual convolution": lambda plan: Residual(_conv(plan)),
        "batch norm": lambda _: nn.BatchNorm2d(F).eval(),
        "group norm": lambda _: nn.GroupNorm(2, F),
        "linear": lambda _: nn.Linear(F, F),
    },
    "sequence": {
        **_EVERYWHERE,
        "lstm": lambda _: Recurrent(nn.LSTM),
        "gru": lambda _: Recurrent(nn.GRU),
        "time first": lambda _: TimeFirst(nn.RNN(F, F)),
        "attention": lambda _: Attention(),
    },
}
_UNITS_OF_ANY = ("weight", "layer")
_PLAIN = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Network(nn.Module):
    """Blocks one after the other, under odd names."""

    def __init__(self, blocks: dict[str, nn.Module], activations: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)
        self._activations = activations

    def forward(self, x: Tensor) -> Tensor:
        for block, activation in zip(self.blocks.values(), self._activations, strict=True):
            x = activation(block(x))
        return x


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One call of `FilterAttributor.attribute`, and what must come of it.

    Attributes:
        build: Makes the network, the same every time.
        loss: Of the network and a sample, perhaps with state; `clean` is what it is meant to be.
        must_refuse: What the library must refuse; empty where it must be right.
        must_warn: What it must warn about.
        states: Where a loss that draws random numbers writes the state of the generator it started with.
        places: Where a loss writes the places on the path that it is asked at.
    """

    seed: int
    build: Callable[[], nn.Module]
    base: dict[str, Tensor]
    target: dict[str, Tensor]
    loss: Callable[..., Tensor]
    clean: Callable[..., Tensor]
    samples: list[Any]
    options: dict[str, Any]
    unit: str
    select: Any = None
    tolerance: float = 1e-9
    must_refuse: str = ""
    must_warn: str = ""
    trains: bool = False
    in_threads: bool = False
    places: dict[int, list[float]] = field(default_factory=dict)
    states: dict[int, list[Tensor]] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)


def make_job(seed: int) -> Job:
    """Draw one job."""
    plan = random.Random(seed)
    family = plan.choice(("vector", "vector", "image", "sequence", "tokens"))
    kind = plan.choices(("float64", "float32", "bfloat16", "float16", "complex"), (6, 3, 0.8, 0.4, 0.5))[0]
    if kind == "complex":
        family = "vector"
    if kind in _HALF and family != "vector":
        kind = "float32"
    story = [family, kind]
    layout = plan.getstate()

    def build_from(state: Any, weights: int) -> nn.Module:
        own = random.Random()
        own.setstate(state)
        with drawn(weights):
            return _network(own, family, kind, story if len(story) == 2 else [])

    def build(weights: int = seed) -> nn.Module:
        return build_from(layout, weights)

    model = build()
    trains = any(isinstance(module, _IN_TRAINING) and module.training for module in model.modules())
    plan = random.Random(seed + 10**6)
    base = {name: value.clone() for name, value in build(seed + 1).state_dict().items()}
    target = {name: value.clone() for name, value in build(seed + 2).state_dict().items()}
    with drawn(seed + 3):
        for name, parameter in model.named_parameters():  # those of norms are 1 and 0 in all networks
            target[name] += 0.2 * torch.randn_like(parameter.detach())
    job = Job(
        seed,
        build,
        base,
        target,
        _clean,
        _clean,
        _samples(plan, family, kind),
        {},
        "weight",
        story=story,
        trains=trains,
    )
    _choose_options(job, plan, model, kind)
    _choose_ends(job, plan, model, kind)
    _choose_loss(job, plan, model, family, kind)
    return job


def _network(plan: random.Random, family: str, kind: str, story: list[str]) -> nn.Module:
    if kind == "complex":
        return Complex()
    if family == "tokens":
        names = ["embedding", *(plan.choice([*_BLOCKS["sequence"]]) for _ in range(plan.randint(1, 2)))]
    else:
        names = [plan.choice([*_BLOCKS[family]]) for _ in range(plan.randint(1, 3))]
    if kind in _HALF:
        names = ["linear", "residual"][: plan.randint(1, 2)]
    known = _BLOCKS["sequence" if family == "tokens" else family] | {"embedding": lambda _: nn.Embedding(7, F)}
    blocks = [known[name](plan) for name in names]
    if plan.random() < 0.35 and kind not in _HALF:
        kept = plan.choice(("list", "tuple", "dict", "deep", "closure", "partial", "helper", "namespace", "global"))
        blocks.append(Held(nn.Linear(F, F, bias=plan.random() < 0.5), kept))
        names.append(f"held in {kept}")
    if plan.random() < 0.25 and kind not in _HALF:
        kept = plan.choice(
            ("attribute", "list", "tuple", "dict", "deep", "deque", "namespace", "growing", "counter", "popped")
        )
        blocks.append(Written(kept))
        names.append(f"written in {kept}")
    if plan.random() < 0.15 and family != "tokens" and kind not in _HALF:
        blocks.append(nn.Dropout(0.4))
        names.append("dropout")
    if plan.random() < 0.1 and kind == "float64":
        blocks = [block.train() for block in blocks]
    story += names
    order = plan.sample(range(len(blocks)), len(blocks)) if family != "tokens" else list(range(len(blocks)))
    spelled = [plan.choice(("{}", "layer[{}]", "a*{}", "module{}", "{}?")).format(number) for number in order]
    activations = [plan.choice((torch.tanh, nn.functional.silu, nn.functional.relu, nn.Identity())) for _ in order]
    network = Network({name: blocks[number] for name, number in zip(spelled, order, strict=True)}, activations)
    return network.to(getattr(torch, kind))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(F, F, dtype=torch.complex128))
        self.last = nn.Linear(F, F, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x.to(self.weight.dtype) @ self.weight).abs())


def _samples(plan: random.Random, family: str, kind: str) -> list[Any]:
    shape = {"vector": (3, F), "image": (2, F, F, F), "sequence": (2, 3, F), "tokens": (2, 3)}[family]
    real = torch.float64 if kind == "complex" else getattr(torch, kind)
    generator = torch.Generator().manual_seed(plan.randrange(10**6))
    if family == "tokens":
        return [torch.randint(0, 7, shape, generator=generator) for _ in range(plan.randint(1, 2))]
    return [torch.randn(shape, generator=generator).to(real) for _ in range(plan.randint(1, 2))]


def _clean(model: nn.Module, sample: Tensor) -> Tensor:
    found = model(sample)
    return (found.float() if found.dtype in (torch.bfloat16, torch.float16) else found).sub(0.3).square().sum()


def _choose_options(job: Job, plan: random.Random, model: nn.Module, kind: str) -> None:
    method = plan.choice(("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"))
    job.options = {"method": method, "n_steps": plan.randint(2, 5), "progress": False}
    job.tolerance = {"float64": 1e-9, "complex": 1e-9, "float32": 2e-4, "bfloat16": 2e-2, "float16": 5e-3}[kind]
    if kind == "float32" and plan.random() < 0.15:
        job.options["precision"] = "bf16"
        job.tolerance = 5e-2
        job.story.append("autocast")
    scored = [
        module for module in model.modules() if any(p.ndim > 1 for p in module._parameters.values() if p is not None)
    ]
    is_plain = all(isinstance(module, _PLAIN) for module in scored) and bool(scored)
    job.unit = plan.choice(("weight", "layer", "kernel", "filter", "input") if is_plain else _UNITS_OF_ANY)
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    if plan.random() < 0.03:
        job.select, job.must_refuse = [*names, "blocks.wieght"], "a name that fits nothing"
        job.story.append(job.must_refuse)
    elif names and job.unit in _UNITS_OF_ANY and plan.random() < 0.3:
        job.select = [plan.choice([name for name, _ in model.named_parameters() if not {*name} & {*"*?"}] or names)]
        job.story.append(f"selected {job.select}")
    elif not names:
        job.unit, job.select = "weight", ["*"]


def _choose_ends(job: Job, plan: random.Random, model: nn.Module, kind: str) -> None:
    """Buffers that differ or not, and layouts of the state dicts."""
    buffers = [name for name, value in model.named_buffers() if value.is_floating_point()]
    if buffers and plan.random() < 0.5:
        job.options["buffers"] = plan.choice(("base", "target"))
        for state in (job.base, job.target):
            for name in buffers:
                state[name] = state[name] + plan.random()
        job.story.append("buffers differ")
    else:
        for name in buffers:
            job.target[name] = job.base[name].clone()
    for state in (job.base, job.target):
        _lay_out(state, plan, [name for name, _ in model.named_parameters()])
        _agree(model, state)
    ties = [name for name in job.base if name not in dict(model.named_parameters()) | dict(model.named_buffers())]
    if ties and plan.random() < 0.15:
        job.target[ties[0]] = job.target[ties[0]] + 1
        job.must_refuse = "a weight with two values"
        job.story.append(job.must_refuse)
    if kind in _HALF:
        _refine(job, plan)


def _lay_out(state: dict[str, Tensor], plan: random.Random, names: list[str]) -> None:
    """Transposed storage, and tensors that repeat their first row."""
    for name in names:
        value = state[name]
        if plan.random() < 0.2 and value.ndim > 1:
            state[name] = value.transpose(0, -1).contiguous().transpose(0, -1)
        elif plan.random() < 0.1 and value.ndim > 1 and value.is_floating_point():
            state[name] = value[:1].expand_as(value)


def _refine(job: Job, plan: random.Random) -> None:
    """Make the ends finer than the model, with changes that it can or cannot tell."""
    is_small = plan.random() < 0.5
    factor = 1e-4 if is_small else 1.5
    job.base = {name: value.float() for name, value in job.base.items()}
    job.target = {name: value * (1 + factor * plan.random()) for name, value in job.base.items()}
    if is_small:
        job.must_warn = "round away"
        job.story.append("changes that round away")


def _agree(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Names of one tensor hold one value."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        state[name] = state[first.setdefault(id(tensor), name)]


def _choose_loss(job: Job, plan: random.Random, model: nn.Module, family: str, kind: str) -> None:
    if "held in global" in job.story:
        job.must_refuse = "a weight in a global"
    if any(isinstance(module, nn.Dropout) and module.training for module in model.modules()):
        job.loss = partial(_recording, job)
        job.in_threads = plan.random() < 0.3 and not job.must_refuse  # a global is that of the network built last
        job.story += ["draws"] + ["threads"] * job.in_threads
        return
    choice = plan.choices(("clean", "pops", "marks", "keeps", "writes", "counts", "generator"), (6, 1, 1, 1, 1, 1, 1))[
        0
    ]
    if (kind in _HALF or "precision" in job.options) and choice in ("counts", "generator"):
        choice = "clean"  # two draws may be one number, in so few digits
    job.story.append(f"loss {choice}")
    if choice == "clean":
        _choose_kind(job, plan, model, kind)
    if choice in ("pops", "marks"):
        job.samples = [{"x": sample, "scale": [0.5, 2.0]} for sample in job.samples]
        job.clean = lambda model, batch: _clean(model, batch["x"]) * 2.0
        job.loss = _popping if choice == "pops" else _marking
    elif choice == "writes" and family != "tokens":
        job.clean = lambda model, sample: _clean(model, sample.sub(0.2))
        job.loss = lambda model, sample: _clean(model, sample.sub_(0.2))
        job.must_refuse = job.must_refuse or "a loss that writes to its sample"
    elif choice == "keeps":
        seen: list[Tensor] = []
        job.loss = lambda model, sample: seen.append(sample) or _clean(model, sample)
    elif choice in ("counts", "generator"):
        calls: list[int] = []
        noise = torch.Generator().manual_seed(plan.randrange(10**6))
        factor = (
            (lambda: calls.append(1) or len(calls))
            if choice == "counts"
            else (lambda: float(torch.rand((), generator=noise)))
        )
        job.loss = lambda model, sample: _clean(model, sample) * (1 + factor())
        job.must_refuse = job.must_refuse or f"a loss that {choice}"


def _choose_kind(job: Job, plan: random.Random, model: nn.Module, kind: str) -> None:
    """Pooled, along a waypoint, or several samples in a pass."""
    if kind == "float64" and plan.random() < 0.25:
        job.loss = partial(_placing, job, _first_moving(job, model))
        job.options = {"aggregate": "pooled", "n_steps": plan.randint(1, 3), "progress": False} | {
            name: value for name, value in job.options.items() if name == "buffers"
        }
        job.story.append("pooled")
    elif plan.random() < 0.2 and not job.must_warn:
        middle = job.build(job.seed + 3).state_dict()
        job.options["waypoints"] = [{name: middle[name].clone() for name in job.base}]
        _agree(model, job.options["waypoints"][0])
        job.story.append("waypoint")
    elif kind == "float64" and job.story[0] == "vector" and len(job.samples) > 1 and _is_simple(job.story):
        job.options["internal_batch_size"] = plan.choice((1, 2))


def _is_simple(story: list[str]) -> bool:
    return set(story) <= {"vector", "float64", "linear", "residual", "layer norm", "twice", "loss clean"}


def _popping(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return _clean(model, batch["x"]) * batch.pop("scale").pop()


def _marking(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    factor = 1.0 if batch.setdefault("seen", 0) else 2.0
    batch["seen"] += 1
    return _clean(model, batch["x"]) * factor


def _first_moving(job: Job, model: nn.Module) -> tuple[str, int]:
    """A weight that is another one in base and target: it tells the place on the path."""
    return next(
        (name, int((job.base[name] != job.target[name]).flatten().nonzero()[0]))
        for name, _ in model.named_parameters()
        if bool((job.base[name] != job.target[name]).any())
    )


def _placing(job: Job, entry: tuple[str, int], model: nn.Module, sample: Tensor) -> Tensor:
    """A loss that tells the place on the path."""
    name, number = entry
    here = model.get_parameter(name).detach().flatten()[number]
    first, last = job.base[name].flatten()[number], job.target[name].flatten()[number]
    job.places.setdefault(id(sample), []).append(float((here - first) / (last - first)))
    return _clean(model, sample)


def _recording(job: Job, model: nn.Module, sample: Tensor) -> Tensor:
    """A loss that draws, and tells with what."""
    job.states.setdefault(id(sample), []).append(torch.get_rng_state())
    return _clean(model, sample)


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(seed: int) -> list[str]:
    """Run one job with the library and with the literal reference; list what differs, with the story of the job."""
    jobs = [make_job(seed)]
    with warnings.catch_warnings(record=True) as caught:  # round the threads: filters belong to the whole process
        warnings.simplefilter("always")
        if jobs[0].in_threads:
            jobs.append(make_job(seed))
            models = [job.build() for job in jobs]  # first weights are drawn: not while a thread draws for its loss
            with _switching_often(), ThreadPoolExecutor(2) as pool:
                outcomes = list(pool.map(_attributed, jobs, models))
        else:
            outcomes = [_attributed(jobs[0], jobs[0].build())]
    told = [str(one.message) for one in caught if issubclass(one.category, FilterAttrWarning)]
    problems = [
        problem for job, outcome in zip(jobs, outcomes, strict=True) for problem in _problems(job, outcome, told)
    ]
    return [f"seed {seed} ({', '.join(jobs[0].story)}): {problem}" for problem in problems]


@contextmanager
def _switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _attributed(job: Job, model: nn.Module) -> Any:
    """The attribution or the error."""
    caches = [repr(module.cache) for module in model.modules() if isinstance(module, Written)]
    try:
        with unchanged(model, but=("random", "optimizer") if job.in_threads else ()):
            attributor = FilterAttributor(model, unit=job.unit, select=job.select)
            found: Any = attributor.attribute(job.base, job.target, job.loss, job.samples, **job.options)
    except (FilterAttrError, AssertionError) as error:
        found = error
    except Exception as error:  # noqa: BLE001 - raw errors are what is looked for
        found = RuntimeError(f"{type(error).__name__}: {error}")
    if caches != [repr(module.cache) for module in model.modules() if isinstance(module, Written)]:
        found = AssertionError("a cache has changed")
    return found


# what is said of paths that are as coarse and as arbitrary as those of these jobs
_DOUBTS = ("the attributions should sum to", "reasons to doubt this", "every attribution is 0")


def _problems(job: Job, found: Any, told: list[str]) -> Iterator[str]:
    if job.must_refuse:
        if not isinstance(found, FilterAttrError) and not any("same function at every node" in text for text in told):
            yield f"{job.must_refuse} must be refused; got {found!r:.200}"
        return
    if isinstance(found, Exception):
        yield f"{type(found).__name__}: {found}"
        return
    if job.must_warn and not any(job.must_warn in text for text in told):
        yield f"no warning says '{job.must_warn}': {told}"
    known = (*_DOUBTS, *([job.must_warn] if job.must_warn else []), *(["in train mode"] if job.trains else []))
    others = [text for text in told if not any(words in text for words in known)]
    if others:
        yield f"warned of {others}"
    for states in job.states.values():
        if any(not torch.equal(state, states[0]) for state in states):
            yield "nodes of one sample draw other random numbers"
    yield from _compared(job, found, _reference(job))


def _reference(job: Job) -> Literal:
    model = job.build()
    modules = dict(model.named_modules())
    reduce: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in job.select if job.select and job.select != ["*"] else parameter.ndim > 1 or job.select:
            reduce[name] = unit_sums(modules[name.rpartition(".")[0]], job.unit)

    def loss(network: nn.Module, sample: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled="precision" in job.options):
            return job.clean(network, sample)

    with drawn(0):
        return literal_attribution(
            job.build,
            [job.base, *job.options.get("waypoints", ()), job.target],
            loss,
            job.samples,
            [_nodes(job, sample) for sample in job.samples],
            reduce,
            buffers=job.options.get("buffers", "base"),
            states=[job.states[id(sample)][0] for sample in job.samples] if job.states else (),
            is_pooled="aggregate" in job.options,
        )


def _nodes(job: Job, sample: Any) -> list[tuple[float, float]]:
    """The nodes of a rule, or those that a pooled attribution was seen at."""
    count = job.options["n_steps"]
    if "aggregate" not in job.options:
        return rule(job.options["method"], count)
    places = [t for t in job.places[id(sample)] if min(abs(t), abs(t - 1)) > 1e-9]
    assert len(places) == count
    return [(t, 1 / count) for t in places]


def _compared(job: Job, found: Any, expected: Literal) -> Iterator[str]:
    size = max(abs(expected.loss_base), abs(expected.loss_target), abs(expected.total))
    for name in ("total",) if "aggregate" in job.options else ("loss_base", "loss_target", "total"):
        have, want = getattr(found, name), getattr(expected, name)
        if not abs(have - want) <= job.tolerance * size:
            yield f"{name} is {have}, not {want}"
    if not job.states and "precision" not in job.options and "buffers" not in job.options:
        yield from _swapped(job, expected.loss_target, size)
    if "aggregate" not in job.options and not abs(
        found.completeness_error - expected.completeness_error
    ) <= 100 * job.tolerance * (1 + expected.completeness_error):
        yield f"completeness_error is {found.completeness_error}, not {expected.completeness_error}"
    for reduction, scores in expected.scores.items():
        have = found.scores(reduction)
        if set(have) != set(scores):
            yield f"scored are {sorted(have)}, not {sorted(scores)}"
            return
        for name, want in scores.items():
            size = float(expected.scores["sum_of_abs"][name].max())
            if have[name].shape != want.shape:
                yield f"{reduction} of {name} has shape {tuple(have[name].shape)}, not {tuple(want.shape)}"
            elif not bool((have[name] - want).abs().max() <= job.tolerance * size):
                yield f"{reduction} of {name} is off by {float((have[name] - want).abs().max()) / size:.1e}"


def _swapped(job: Job, expected: float, size: float) -> Iterator[str]:
    """The same loss, while the model holds the weights of target."""
    model = job.build()
    total = 0.0
    for sample in job.samples:
        with unchanged(model), swapped(model, job.target):
            total += job.clean(model, sample).item() / len(job.samples)
    if not abs(total - expected) <= job.tolerance * size:
        yield f"the loss inside swapped() is {total}, not {expected}"


# --- channels ---------------------------------------------------------------------------------------------------------


class Placed(nn.Module):
    """Puts the samples somewhere, and the layer that is looked at, there."""

    def __init__(self, plan: random.Random, place: str, inputs: int) -> None:
        super().__init__()
        self.place = place
        width = plan.choice((3, 4))
        self.layer = nn.Conv2d(inputs, width, 3, padding=1) if "image" in place else nn.Linear(inputs, width)
        self.scale = plan.random() + 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Give one number a sample, which depends on the time."""
        if self.place == "image":
            return (torch.tanh(self.layer(x)) * self.scale).flatten(1).cumsum(1).square().mean(1)
        if self.place == "image without samples":
            return torch.tanh(self.layer(x)).sum() * self.scale
        if self.place == "samples first":
            return torch.tanh(self.layer(x)).cumsum(1).square().mean((1, 2))
        if self.place == "rows":
            steps = self.layer(x.flatten(0, 1)).reshape(*x.shape[:2], -1)
            return torch.tanh(steps).cumsum(1).square().mean((1, 2))
        turned = x.transpose(0, 1)
        if self.place == "time first":
            return torch.tanh(self.layer(turned)).cumsum(0).square().mean((0, 2))
        steps = self.layer(turned.flatten(0, 1)).reshape(*turned.shape[:2], -1)
        return torch.tanh(steps).cumsum(0).square().mean((0, 2))


_PLACES = ("image", "image without samples", "samples first", "rows", "time first", "time first in rows")


def channel_differences(seed: int) -> list[str]:
    """The same for `ChannelAttributor`: a layer that gets its samples somewhere, against single samples."""
    plan = random.Random(seed)
    place = plan.choice(_PLACES)
    with drawn(seed):
        inputs, samples, times = plan.choice((1, F)), plan.randint(1, 4), plan.randint(2, 6)
        model = Placed(plan, place, inputs).double()
        image = (inputs, 5, 5)
        shape = {"image": (samples, *image), "image without samples": image}.get(place, (samples, times, inputs))
        ends = torch.randn(2, *shape, dtype=torch.float64)
    n_steps = plan.randint(2, 4)
    story = f"seed {seed} (channels, {place}, inputs of shape {shape})"
    try:
        with unchanged(model):
            found = ChannelAttributor(model, "layer").attribute(
                ends[0], ends[1], lambda y: y, attribution="internal_influence", n_steps=n_steps
            )
            scores = found.channels()["layer"]
    except FilterAttrError as error:
        return [] if place == "image without samples" else [f"{story}: {error}"]
    except Exception as error:  # noqa: BLE001 - raw errors are what is looked for
        return [f"{story}: {type(error).__name__}: {error}"]
    if place == "image without samples":
        return [] if scores.shape == model.layer.weight.shape[:1] else [f"{story}: scores of shape {scores.shape}"]
    expected = literal_influence(
        model,
        model.layer,
        (ends[0], ends[1]),
        lambda y: y,
        rule("gausslegendre", n_steps),
        1 if "image" in place else -1,
    )
    if scores.shape != expected.shape:
        return [f"{story}: scores of shape {tuple(scores.shape)}, not {tuple(expected.shape)}"]
    gap = float((scores - expected).abs().max() / expected.abs().max())
    return [f"{story}: off by {gap:.1e}"] if not gap < 1e-9 else []
