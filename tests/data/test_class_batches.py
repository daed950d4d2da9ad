"""Batches of m clips of each class."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.datamodules import SkeletonDataModule
from skelact.data.loading import ClassBatches
from skelact.engine.resume import ContinuingLoader
from skelact.errors import SkelactError

from .conftest import write_store


def _labels(sizes):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)  # neither consecutive nor, below, in order
    return np.random.default_rng(0).permutation(labels)


def _batches(labels, size, m, rank=0, world=1, epoch=0, seed=3):
    sampler = ClassBatches(100 + np.arange(len(labels)), labels, size, m, rank, world, seed)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=3, max_size=9), st.integers(1, 5), st.integers(0, 99), st.data())
def test_every_batch_has_m_clips_of_each_of_its_classes(sizes, m, epoch, data):
    labels = _labels(sizes)
    classes = data.draw(st.integers(1, len(sizes)))
    batches = _batches(labels, classes * m, m, epoch=epoch)
    assert len(batches) == max(len(labels) // (classes * m), 1)
    for batch in batches:
        rows = batch.numpy() - 100
        own, counts = np.unique(labels[rows], return_counts=True)
        assert len(own) == classes and (counts == m).all()
        for label in own:  # twice only where there are too few
            there = (labels == label).sum()
            assert len(set(rows[labels[rows] == label].tolist())) == m if there >= m else there


@pytest.mark.parametrize(("world", "m"), [(2, 4), (3, 2), (4, 3)])
def test_ranks_share_the_batches_of_one_process(world, m):
    labels = _labels([9, 20, 4, 15, 1, 12])
    for epoch in (0, 1):
        single = _batches(labels, 12, m, epoch=epoch)
        ranks = [_batches(labels, 12, m, rank, world, epoch) for rank in range(world)]
        for whole, *parts in zip(single, *ranks, strict=True):
            assert len({len(part) for part in parts}) == 1
            assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(single[0], _batches(labels, 12, m)[0])


def test_the_order_is_a_function_of_seed_and_epoch():
    labels = _labels([9, 20, 4])
    assert all(map(torch.equal, _batches(labels, 4, 2, epoch=5), _batches(labels, 4, 2, epoch=5)))
    assert not all(map(torch.equal, _batches(labels, 4, 2), _batches(labels, 4, 2, seed=4)))


def test_classes_are_drawn_alike_and_their_clips_too():
    labels = np.repeat([0, 1, 2, 3], [2, 10, 40, 148])
    rows = torch.cat([torch.cat(_batches(labels, 4, 2, epoch=epoch)) for epoch in range(200)]).numpy() - 100
    share = np.bincount(labels[rows], minlength=4) / len(rows)
    np.testing.assert_allclose(share, 0.25, atol=0.02)
    each = np.bincount(rows[labels[rows] == 1])[2:12] / (labels[rows] == 1).sum()
    np.testing.assert_allclose(each, 0.1, atol=0.02)


def test_a_resumed_epoch_goes_on_where_it_stopped(tmp_path):
    write_store(tmp_path / "s")
    loader = SkeletonDataModule(str(tmp_path / "s"), "xsub", batch_size=4, per_class=2).train_dataloader()
    loader.sampler.set_epoch(7)
    whole = list(loader)
    rest = list(ContinuingLoader(loader, SimpleNamespace(epoch=7, batches=len(whole) + 1)))
    assert len(rest) == len(whole) - 1 and all(map(torch.equal, rest, whole[1:]))


def test_clips_without_a_class_are_left_out():
    labels = np.array([-1, 0, 0, -1, 1, 1])
    rows = torch.cat([torch.cat(_batches(labels, 4, 2, epoch=epoch)) for epoch in range(9)]) - 100
    assert set(rows.tolist()) == {1, 2, 4, 5}


def test_batches_that_cannot_be():
    with pytest.raises(SkelactError, match=r"batch_size=9 is not a multiple of data\.per_class=2"):
        _batches(_labels([5, 5, 5]), 9, 2)
    with pytest.raises(SkelactError, match=r"takes 4 classes, and there are 3 to train on: at most data\.batch_size=6"):
        _batches(_labels([5, 5, 5]), 8, 2)


def test_the_datamodule_makes_them_and_a_variant_need_not(tmp_path):
    write_store(tmp_path / "s")
    module = SkeletonDataModule(str(tmp_path / "s"), "xsub", batch_size=4, per_class=2)
    labels = module.store.label
    for batch in module.train_dataloader():
        assert sorted(np.unique(labels[batch.numpy()], return_counts=True)[1].tolist()) == [2, 2]
    plain = torch.cat(list(module.variant(per_class=None, drop_last=False).train_dataloader()))
    assert sorted(plain.tolist()) == module.rows("train").tolist()
