import numpy as np
import pytest
import torch

from skelact.benchmarks.data import benchmark_views, clip_by_clip_view, made_up_clips


def test_numbers_come_out_and_threads_are_put_back():
    before = torch.get_num_threads()
    result = benchmark_views(batch_size=8, views=2, frames=16, length=20, repeats=3)
    assert torch.get_num_threads() == before
    assert result["ratio"] == pytest.approx(result["views_per_s"] / result["reference_views_per_s"])
    assert min(value for key, value in result.items() if key.endswith("per_s")) > 0


def test_made_up_clips_have_about_the_length_asked_for():
    clips = made_up_clips(200, length=100)
    assert clips.shape == (2, 25, 3) and clips.length.min() >= 70 and clips.length.max() <= 130
    assert torch.equal(made_up_clips(4).frames, made_up_clips(4).frames)


def test_the_plain_form_is_the_published_augmentation():
    clip, rng = torch.randn(100, 2, 25, 3), np.random.default_rng(0)
    views = torch.stack([clip_by_clip_view(clip, 64, rng) for _ in range(400)])
    assert views.shape == (400, 2, 64, 25, 3)
    zero = (views == 0).all(-1).all(2).all(1).sum(1)
    assert set(zero.tolist()) == {0, 15} and (zero == 15).float().mean().item() == pytest.approx(0.25, abs=0.08)
