import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.temporal import TemporalBlur, TemporalCrop, TimeFlip, take_frames


def make(n=6, m=2, t=12, v=25, c=3, seed=0):
    return torch.randn(n, t, m, v, c, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


def draws(n, seed=0):
    return Draws(seed, 0, torch.arange(n) * 5 + 1)


def numbered(n, t):
    """Views whose coordinates are the number of the frame, from 1."""
    return torch.arange(1.0, t + 1).view(1, 1, t, 1, 1).expand(n, 2, t, 3, 3).contiguous()


@given(n=st.integers(1, 5), t=st.integers(1, 30), ratio=st.floats(1, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_crop_is_numpys_symmetric_padding(n, t, ratio, seed):
    views, crop = make(n, t=t, v=3, seed=seed), TemporalCrop(ratio)
    mask = views[..., 0] > -0.5
    start = crop.draw(draws(n, seed), views)["start"]
    p = int(t / ratio)
    assert ((start >= 0) & (start <= 2 * p)).all()
    out, seen = crop.replay(views, mask, start=start)
    for row, first in enumerate(start.tolist()):
        padded = np.pad(views[row].numpy(), ((0, 0), (p, p), (0, 0), (0, 0)), mode="symmetric")
        hidden = np.pad(mask[row].numpy(), ((0, 0), (p, p), (0, 0)), mode="symmetric")
        assert (out[row].numpy() == padded[:, first : first + t]).all()
        assert (seen[row].numpy() == hidden[:, first : first + t]).all()


def test_crops_start_everywhere():
    start = TemporalCrop().draw(draws(3000), make(1, t=50).expand(3000, -1, -1, -1, -1))["start"]
    assert start.unique().tolist() == list(range(17))  # 8 frames on either side of 50
    assert start.float().mean().item() == pytest.approx(8, abs=0.3)


@pytest.mark.parametrize("transform", [TemporalCrop(4), TimeFlip(0.5)], ids=["crop", "flip"])
def test_the_mask_follows_the_frames(transform):
    views = numbered(40, 12)
    mask = (torch.rand(40, 2, 12, generator=torch.Generator().manual_seed(0)) > 0.3)[..., None].expand(-1, -1, -1, 3)
    out, seen = transform(views * mask[..., None], mask, draws(40))
    assert torch.equal(seen, out[..., 0] != 0) and not torch.equal(seen, mask)
    source = torch.where(seen, out[..., 0].long() - 1, 0)
    assert mask.gather(2, source)[seen].all()


def test_time_flip():
    views, flip = make(), TimeFlip()
    reverse = torch.tensor([True, False, True, False, True, True])
    out, _ = flip.replay(views, None, reverse=reverse)
    assert torch.equal(out[reverse], views[reverse].flip(2)) and torch.equal(out[~reverse], views[~reverse])
    assert torch.equal(flip.replay(out, None, reverse=reverse)[0], views)
    share = TimeFlip(0.3).draw(draws(3000), views)["reverse"].float().mean().item()
    assert share == pytest.approx(0.3, abs=0.03)


def test_frames_taken_from_any_memory_order():
    views, place = make(), torch.tensor([[3, 3, 0, 11]]).expand(6, -1)
    out, mask = take_frames(views, None, place)
    assert mask is None and out.transpose(1, 2).is_contiguous()
    assert torch.equal(out, views[:, :, [3, 3, 0, 11]])
    assert torch.equal(take_frames(views.contiguous(), None, place)[0], out)


class TestBlur:
    def test_what_stands_still_stays(self):
        still = torch.randn(6, 2, 1, 25, 3).expand(-1, -1, 12, -1, -1)
        out, _ = TemporalBlur(p=1.0)(still, None, draws(6))
        torch.testing.assert_close(out, still)
        released, _ = TemporalBlur(p=1.0, preset="as_released", sigma=(1.9, 2.0))(still, None, draws(6))
        assert ((released / still)[:, :, 6] > 3).all()  # its weights add up to more than one

    def test_only_the_clips_that_were_drawn(self):
        views, blur = make(60), TemporalBlur()
        out, _ = blur(views, None, draws(60))
        chosen = blur.draw(draws(60), views)["blur"]
        assert 15 < chosen.sum() < 45 and torch.equal(out[~chosen], views[~chosen])
        assert (out[chosen] != views[chosen]).flatten(1).any(1).float().mean() > 0.8  # but for the narrowest

    def test_gaps_neither_count_nor_fill(self):
        views = numbered(4, 12) * 0 + 5.0
        mask = torch.ones(4, 2, 12, 3, dtype=torch.bool)
        mask[:, 0, 4:7], mask[:, :, :, 1] = False, False
        for preset in ("corrected", "as_released"):
            blur = TemporalBlur(p=1.0, sigma=(1.0, 2.0), preset=preset)
            out, seen = blur(views * mask[..., None], mask, draws(4))
            assert torch.equal(seen, mask) and (out[~mask] == 0).all()
            if preset == "corrected":
                torch.testing.assert_close(out[mask], views[mask])

    def test_bodies_that_come_and_go(self):
        views = numbered(4, 12) * 0 + 5.0
        views[:, 1, :6] = 0
        out, _ = TemporalBlur(p=1.0)(views, None, draws(4))
        torch.testing.assert_close(out, views)
        released, _ = TemporalBlur(p=1.0, sigma=(1.0, 2.0), preset="as_released")(views, None, draws(4))
        assert (released[:, 1, 5] != 0).all()

    def test_scores_pass_and_precision_stays(self):
        views = make(c=4).double()
        out, _ = TemporalBlur(p=1.0)(views, None, draws(6))
        assert torch.equal(out[..., 3], views[..., 3]) and out.dtype == torch.float64


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: TemporalCrop(0.5), "ratio must be at least 1"),
        (lambda: TimeFlip(-0.1), "within 0 and 1"),
        (lambda: TemporalBlur(taps=4), "odd"),
        (lambda: TemporalBlur(sigma=(0, 1)), "0 < low"),
        (lambda: TemporalBlur(preset="published"), "TemporalBlur: preset='published'"),
    ],
)
def test_refusals(make_it, message):
    with pytest.raises(SkelactError, match=message):
        make_it()
