import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.transforms.draws import Draws


def draws(n=4096, seed=0, epoch=0, view=0):
    return Draws(seed, epoch, torch.arange(n), view)


@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
    seed=st.integers(-(2**31), 2**31),
    epoch=st.integers(0, 10_000),
    view=st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_a_draw_belongs_to_its_clip(index, seed, epoch, view):
    whole = Draws(seed, epoch, torch.tensor(index), view)
    alone = Draws(seed, epoch, torch.tensor(index[-1:]), view)
    for one, many in ((alone, whole), (alone.scope("a"), whole.scope("a"))):
        assert torch.equal(one.bits("x", 3), many.bits("x", 3)[-1:])
        assert torch.equal(one.subset("x", 3, 9), many.subset("x", 3, 9)[-1:])


def test_everything_that_should_tell_draws_apart_does():
    base = draws().bits("x")
    others = [
        draws(seed=1).bits("x"),
        draws(epoch=1).bits("x"),
        draws(view=1).bits("x"),
        draws().bits("y"),
        draws().scope("x").bits("x"),
        draws().scope("a").scope("b").bits("x"),
        draws().scope("b").scope("a").bits("x"),
        base.roll(1),
    ]
    for place, other in enumerate(others):
        assert not (other == base).any(), place
    assert len({int(bits[0]) for bits in others}) == len(others)


def test_view_keeps_the_scope():
    assert torch.equal(draws().scope("a").view(2).bits("x"), draws(view=2).scope("a").bits("x"))


def test_known_answers():
    """The same numbers in every process, on every platform and in every release: recorded runs depend on them."""
    draws = Draws(3, 5, torch.tensor([0, 9]), 1)
    assert draws.bits("x", 2).tolist() == [
        [4950044547765547714, 4485220437424214869],
        [-4740297237838181499, -4071232731044988774],
    ]
    assert draws.scope("Shear0").bits("x", 2).tolist() == [
        [4195947786802032481, 7453342226645655918],
        [1072212895377125963, -1224678868670351391],
    ]


def test_uniform_is_uniform():
    unit = draws(20_000).uniform("x", 2, low=-1, high=3)
    assert unit.shape == (20_000, 2) and unit.dtype == torch.float32
    assert unit.min() >= -1 and unit.max() < 3
    counts = torch.histc(unit[:, 0], 20, -1, 3)
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, 0.1 %
    assert torch.corrcoef(unit.T)[0, 1].abs() < 0.03


def test_normal_is_normal():
    values = draws(20_000).normal("x").double()
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.02
    assert abs((values**3).mean()) < 0.08 and abs((values**4).mean() - 3) < 0.2
    assert values.isfinite().all()


def test_integers_cover_their_range_and_no_more():
    high = torch.tensor([1, 2, 7]).repeat(3000)
    values = draws(9000).integers("x", high)
    assert (values >= 0).all() and (values < high).all()
    for n in (1, 2, 7):
        counts = values[high == n].bincount(minlength=n)
        assert len(counts) == n and (counts - 3000 / n).abs().max() < 5 * (3000 / n) ** 0.5 + 1
    assert set(draws().integers("y", 3).tolist()) == {0, 1, 2}


def test_coin_and_subset():
    assert draws().coin("x", 0.3).float().mean().item() == pytest.approx(0.3, abs=0.03)
    chosen = draws().subset("x", 15, 25)
    assert chosen.shape == (4096, 15)
    assert all(len(set(row)) == 15 for row in chosen[:200].tolist())
    share = torch.bincount(chosen.flatten(), minlength=25) / 4096
    torch.testing.assert_close(share, torch.full((25,), 0.6), rtol=0, atol=0.05)


def test_frames_draw_for_themselves_in_any_company():
    some = draws(3).frames(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 5, 6]))
    other = draws(2).frames(torch.tensor([1, 0]), torch.tensor([0, 1]))
    values = some.normal("x", 4, 3)
    assert torch.equal(values[[2, 1]], other.normal("x", 4, 3)) and len(values.unique()) == 60
    assert not torch.equal(values, some.scope("s").normal("x", 4, 3))
    many = draws(500).frames(torch.arange(500).repeat_interleave(40), torch.arange(40).repeat(500)).uniform("x")
    assert many.view(500, 40).mean(0).std() < 0.03 and many.view(500, 40).mean(1).std() < 0.06


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_bits():
    here, there = draws(), Draws(0, 0, torch.arange(4096, device="cuda"))
    assert torch.equal(here.bits("x", 3), there.bits("x", 3).cpu())
    assert torch.equal(here.uniform("x", 3), there.uniform("x", 3).cpu())
