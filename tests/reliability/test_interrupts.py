"""Cases 3 to 5: an interrupt at any instruction leaves the model as it was, and the next call gives the same bits."""

from __future__ import annotations

import random
import signal
import time

import pytest
import torch
from torch import nn

from filterattr import swapped
from tests.reliability.drafts import FILTERATTR, Implementation, Outcome
from tests.reliability.fingerprint import Fingerprint
from tests.reliability.interrupts import Injection, alarm

# an interrupt can end in code that Python calls where nobody can catch it, such as a weak reference's callback
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.* in train mode:filterattr.errors.FilterAttrWarning",
)


class Job:
    """A small call that uses what can be left dirty: buffers, dropout, tied weights, samples, hooks."""

    def __init__(self, attribute: Implementation, n_samples: int = 2) -> None:
        def build():
            layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
            layers[3].weight = layers[0].weight
            return layers

        self.attribute = attribute
        self.model, base, target = (build() for _ in range(3))
        self.ends = [{k: v.clone() for k, v in one.state_dict().items()} for one in (base, target)]
        self.model[0].weight.grad = torch.ones(2, 2)
        self.data = [torch.rand(3, 2)] * n_samples
        self.options = {"n_steps": 1, "method": "riemann_right", "buffers": "base"}
        self.expected = self.run()
        self.before = Fingerprint(self.model)

    @staticmethod
    def loss(model, inputs):
        return model(inputs).square().sum()

    def run(self) -> Outcome:
        return self.attribute(self.model, *self.ends, self.loss, self.data, **self.options)

    def interrupted(self, interruption) -> tuple[bool, list[str]]:
        """Run it under an interruption: whether that arrived, and what it left behind while it was being handled."""
        try:
            with interruption:
                self.run()
        except KeyboardInterrupt:
            return True, self.before.changes(self.model)
        return False, self.before.changes(self.model)

    def goes_on(self) -> bool:
        """Whether the next call gives the same bits and leaves no trace either."""
        again = self.run()
        same = all(torch.equal(again.values[name], value) for name, value in self.expected.values.items())
        return same and not self.before.changes(self.model)


def inject(
    attribute: Implementation, is_meant, tries: int | None = None, event: str = "opcode", n_samples: int = 2
) -> tuple[int, list[str]]:
    """Interrupt a job at every instruction, or at so many of them: how many there were, and what went wrong."""
    job = Job(attribute, n_samples)
    dry = Injection(is_meant, event=event)
    job.interrupted(dry.armed())
    places = range(1, dry.count + 1, 1 if tries is None else max(1, dry.count // tries))
    dirty, n_past = [], 0
    for at in places:
        injection = Injection(is_meant, at, event)
        arrived, changes = job.interrupted(injection.armed())
        is_past = not arrived and injection.count < at  # the first call does what is done once in a process
        n_past += is_past
        if not (arrived or is_past) or changes or not job.goes_on():
            dirty.append(f"{at} ({injection.place}): {changes or 'not raised, or the next call differs'}")
            job = Job(attribute, n_samples)
    assert n_past <= 0.01 * len(places)
    return len(places), dirty


def own_frames(attribute: Implementation):
    return lambda name: name.startswith(attribute.sources)


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
class TestInjection:
    def test_case_03_interrupt_at_some_instructions_of_the_implementation(self, attribute):
        tried, dirty = inject(attribute, own_frames(attribute), tries=97)
        assert tried > 50
        assert dirty == []

    def test_case_05_an_interrupt_that_a_handler_holds_back_until_a_block_is_entered(self, attribute):
        tried, dirty = inject(attribute, lambda _: True, event="return")
        assert tried > 0
        assert dirty == []

    @pytest.mark.slow
    @pytest.mark.timeout(7200)
    def test_case_03_interrupt_at_every_instruction_of_the_library(self, attribute):
        tried, dirty = inject(attribute, own_frames(attribute), n_samples=1)
        assert tried > 1000
        assert dirty == []

    @pytest.mark.slow
    @pytest.mark.timeout(7200)
    def test_case_03_interrupt_below_the_call_also_inside_torch_and_the_standard_library(self, attribute):
        # PyTorch's registration of an optimizer hook is left out: interrupted there, a hook that does nothing stays
        tried, dirty = inject(attribute, lambda name: not name.endswith("optim/optimizer.py"), tries=5000)
        assert tried > 1000
        assert dirty == []


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
class TestStorm:
    def storm(self, attribute, times):
        job, draw = Job(attribute), random.Random(0)
        begun = time.perf_counter()
        job.run()
        lasting = time.perf_counter() - begun
        arrived, dirty = 0, []
        for _ in range(times):
            interrupted, changes = job.interrupted(alarm(draw.uniform(1e-5, 1.2 * lasting)))
            arrived += interrupted
            if changes or not job.goes_on():
                dirty.append(changes)
                job = Job(attribute)
        return arrived, dirty

    def test_case_04_real_signals_at_random_moments(self, attribute):
        arrived, dirty = self.storm(attribute, 40)
        assert arrived >= 5
        assert dirty == []

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_case_04_a_storm_of_real_signals(self, attribute):
        arrived, dirty = self.storm(attribute, 1500)
        assert arrived >= 500
        assert dirty == []

    def test_case_05_a_handler_that_only_takes_note_does_not_disturb(self, attribute):
        job, noted = Job(attribute), []
        handler = signal.signal(signal.SIGINT, lambda *_: noted.append(1))
        try:
            job.loss = lambda model, inputs: signal.raise_signal(signal.SIGINT) or Job.loss(model, inputs)
            assert job.goes_on()
        finally:
            signal.signal(signal.SIGINT, handler)
        assert noted


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_swapped_survives_an_interrupt_at_every_instruction(stride):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    before = Fingerprint(model)

    def run(injection):
        with injection.armed(), swapped(model, state):
            model(torch.ones(3, 2))

    is_ours = own_frames(FILTERATTR)
    dry = Injection(is_ours)
    run(dry)
    assert dry.count > 500
    for at in range(1, dry.count + 1, stride):
        with pytest.raises(KeyboardInterrupt, match="filterattr"):
            run(Injection(is_ours, at))
        assert before.changes(model) == []
