"""A device is not waited for between the nodes of a path: whatever fetches a number from it would stop its queue."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from filterattr import FilterAttributor

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")

# operators whose answer is a number of Python, or a shape that depends on values: CUDA waits for each of them
WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "isin")


class Waits(TorchDispatchMode):
    """Counts what a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __enter__(self):
        own = self.own = torch.Tensor.tolist  # on a processor it is no operator

        def tolist(tensor):
            self.count += 1
            return own(tensor)

        torch.Tensor.tolist = tolist
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.own
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in WAITING
        return func(*args, **(kwargs or {}))


def squares(model, x):
    return model(x).float().square().sum()


def waits(n_steps: int, n_samples: int, **options) -> int:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    target = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data = [torch.randn(1, 1, 8, 8) for _ in range(n_samples)]
    attributor = FilterAttributor(base)
    with Waits() as found:
        attributor.attribute(
            base,
            target,
            lambda model, x: model(x).float().square().sum(),
            data,
            n_steps=n_steps,
            progress=False,
            **options,
        )
    return found.count


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16"}, {"internal_batch_size": 2}], ids=["plain", "bf16", "two"]
)
def test_more_nodes_are_no_more_waits(options):
    assert waits(16, 2, **options) == waits(4, 2, **options) > 0


def test_a_sample_is_waited_for_a_few_times_whatever_the_nodes():
    # its losses, and the sums of its attributions
    assert waits(16, 6) - waits(16, 3) <= 3 * 3


def test_what_waits_is_counted():
    with Waits() as found:
        bool(torch.ones(2).sum() > 1)
        torch.ones(3).tolist()
        torch.equal(torch.ones(1), torch.ones(1))
    assert found.count == 3
