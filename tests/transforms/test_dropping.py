"""Policies of modality dropout: within what clips have, somebody survives, and draws belong to clips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.errors import SkelactError
from skelact.transforms.draws import Draws
from skelact.transforms.dropping import Bernoulli, FixedSubsets, Groups, UniformCount

NAMES = ("rgb", "joint", "bone", "inertial")
GROUPS = {"rgb": "rgb", "joint": "skeleton", "bone": "skeleton", "inertial": "inertial"}
POLICIES = {
    "sample": UniformCount(),
    "batch": UniformCount(per="batch"),
    "bernoulli": Bernoulli(0.7),
    "certain": Bernoulli(1.0),
    "fixed": FixedSubsets([["rgb"], ["joint", "inertial"]]),
    "sensors": Groups(UniformCount()),
    "sensors_fixed": Groups(FixedSubsets([["skeleton"], ["rgb", "inertial"]])),
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_kept(name, data):
    rows = data.draw(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=12))
    seed, epoch, step = (data.draw(st.integers(0, 2**31)) for _ in range(3))
    available = torch.tensor(rows)
    index = torch.arange(len(rows)) * 7 + 3
    kept = POLICIES[name](Draws(seed, epoch, index), available, NAMES, GROUPS, step)
    assert not (kept & ~available).any()
    assert torch.equal(kept.any(1), available.any(1))
    some = torch.tensor(data.draw(st.permutations(range(len(rows)))))[: data.draw(st.integers(1, len(rows)))]
    alone = POLICIES[name](Draws(seed, epoch, index[some]), available[some], NAMES, GROUPS, step)
    assert torch.equal(alone, kept[some])  # whoever else is in the batch
    if name.startswith("sensors"):
        whole = available[:, 1] & available[:, 2]
        assert torch.equal(kept[whole, 1], kept[whole, 2])


def everything(policy, count=6000, step=0, width=4):
    available = torch.ones(count, width, dtype=torch.bool)
    return policy(Draws(0, 0, torch.arange(count)), available, NAMES[:width], GROUPS, step)


def test_uniform_count():
    kept = everything(UniformCount())
    survivors = kept.sum(1).bincount(minlength=5)[1:] / len(kept)
    torch.testing.assert_close(survivors, torch.full((4,), 0.25), atol=0.02, rtol=0)
    torch.testing.assert_close(kept.float().mean(0), torch.full((4,), 1 - 3 / 8), atol=0.02, rtol=0)
    counts = [everything(UniformCount(per="batch"), 50, step).sum(1).unique() for step in range(40)]
    assert all(len(count) == 1 for count in counts) and {int(c) for c in counts} == {1, 2, 3, 4}
    incomplete = torch.tensor([[True, False, False, True]]).expand(3000, -1)
    kept = UniformCount()(Draws(0, 0, torch.arange(3000)), incomplete, NAMES, GROUPS)
    assert kept.sum(1).float().mean() == pytest.approx(1.5, abs=0.04)  # 1 or 2 of the two that are there


def test_bernoulli():
    kept = everything(Bernoulli(0.5))
    expected = torch.full((4,), 0.5 + 1 / 64)  # and a quarter of those that would lose all
    torch.testing.assert_close(kept.float().mean(0), expected, atol=0.02, rtol=0)
    assert (everything(Bernoulli(1.0)).sum(1) == 1).all() and everything(Bernoulli(0.0)).all()


def test_fixed_subsets():
    kept = everything(FixedSubsets([["rgb"], ["inertial", "joint"]]))
    assert kept.unique(dim=0).tolist() == [[False, True, False, True], [True, False, False, False]]
    assert kept[:, 0].float().mean() == pytest.approx(0.5, abs=0.02)
    bones = torch.tensor([[False, False, True, False]])
    alone = FixedSubsets([["rgb"]])(Draws(0, 0, torch.arange(1)), bones, NAMES, GROUPS)
    assert torch.equal(alone, bones)


def test_sensors_are_as_likely_as_each_other():
    kept = everything(Groups(UniformCount()))
    torch.testing.assert_close(kept.float().mean(0), torch.full((4,), 1 - 1 / 3), atol=0.02, rtol=0)


def test_wrong_options():
    with pytest.raises(SkelactError, match="per=clip"):
        UniformCount(per="clip")
    with pytest.raises(SkelactError, match="p=2"):
        Bernoulli(2)
    with pytest.raises(SkelactError, match="none of them empty"):
        FixedSubsets([["rgb"], []])
    with pytest.raises(SkelactError, match="flow is none of rgb"):
        everything(FixedSubsets([["flow"]]))
