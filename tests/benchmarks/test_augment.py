import numpy as np
import pytest
import torch

from skelact.benchmarks.augment import benchmark_augment, extreme_set, extreme_view, normal_view
from skelact.transforms.draws import Draws


def test_numbers_come_out_and_threads_are_put_back():
    before = torch.get_num_threads()
    result = benchmark_augment(batch_size=8, frames=16, repeats=3)
    assert torch.get_num_threads() == before
    assert result["ratio"] == pytest.approx(result["views_per_s"] / result["reference_views_per_s"])
    assert min(value for key, value in result.items() if key.endswith("per_s")) > 0


def test_both_forms_make_views_of_one_kind():
    """The same mean and mean square of views, draws aside, and the same share of masked axes."""
    clip = torch.randn(2, 50, 25, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
    array, rng, n = clip.permute(3, 1, 2, 0).numpy(), np.random.default_rng(0), 600
    plain = torch.from_numpy(np.stack([extreme_view(array, rng) for _ in range(n)])).permute(0, 4, 2, 3, 1).float()
    batch, _ = extreme_set()(clip.expand(n, -1, -1, -1, -1), None, Draws(0, 0, torch.arange(n)))
    for measure in (lambda x: x.mean((0, 1, 2, 3)), lambda x: x.square().mean().sqrt()):
        torch.testing.assert_close(measure(batch), measure(plain), rtol=0.1, atol=0.2)
    gone = [(views == 0).flatten(1, 3).all(1).float().mean(0) for views in (plain, batch)]
    torch.testing.assert_close(gone[0], gone[1], rtol=0, atol=0.06)
    assert normal_view(array, rng).shape == array.shape
