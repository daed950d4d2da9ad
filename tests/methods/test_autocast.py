"""In mixed precision losses and the statistics of normalisation layers stay in single precision, for all methods."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.methods.every import EVERY, loss_of, make


class Statistics(TorchDispatchMode):
    """Collects the types of means and deviations that normalisation layers take, and whether anything was rounded."""

    def __init__(self):
        super().__init__()
        self.types, self.rounded = set(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__
        self.rounded |= name.startswith(("mm", "addmm", "bmm", "convolution")) and out.dtype == torch.bfloat16
        if ("layer_norm" in name or "batch_norm" in name) and "backward" not in name:
            self.types |= {x.dtype for x in out[1:] if isinstance(x, torch.Tensor) and x.numel()}
        return out


@pytest.mark.parametrize(("name", "stage"), EVERY)
def test_losses_and_statistics_are_single(name, stage):
    method, batch = make(name, stage)
    reported = {}
    method.report = lambda values, batch_size: reported.update(values)
    with Statistics() as seen, torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method, batch)
    loss.backward()
    assert seen.rounded and seen.types <= {torch.float32}
    assert loss.dtype == torch.float32 and loss.isfinite()
    for key, value in reported.items():
        assert value.dtype == torch.float32 and value.isfinite(), (key, value)
    for key, value in method.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64, torch.bool) and value.isfinite().all(), key
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_similarities_are_single():
    """Those with the keys in the queue: over the temperature a rounding to 3 digits would be seen."""
    method, _ = make("skeletonclr")
    q, k = (
        torch.nn.functional.normalize(torch.randn(len(method.streams), 4, method.queue.keys.shape[1]), dim=-1)
        for _ in range(2)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = method.logits(q, k)
    assert torch.equal(found, method.logits(q, k)) and found.dtype == torch.float32
