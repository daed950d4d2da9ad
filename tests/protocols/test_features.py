"""Extraction: exact, order-keeping, cached under everything that features depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skelact.backbones.dstformer import DSTformer
from skelact.methods.supervised import Supervised
from skelact.protocols.features import extract, extract_subsets, raw_pose, raw_pose_subsets, subset_name, subsets
from skelact.transforms.sampling import CenterCrop


def test_every_clip_once_in_store_order(data, make) -> None:
    method = make(0).train()
    table = extract(method, data, "test")
    assert method.training
    assert table.names == data.clip_names("test") and len(set(table.names)) == 12
    assert np.array_equal(table.labels.numpy(), data.labels("test"))
    method.eval()
    with torch.no_grad():
        alone = torch.cat([method.features(batch) for batch in data.batches("test", 1)])
    assert torch.allclose(table.features, alone, atol=1e-5)
    assert not table.features.is_inference()


def test_subsets_in_one_pass_equal_single_extractions(data, make) -> None:
    method = make(0)
    every = subsets(method.streams)
    assert len(every) == 7 and subset_name(("joint", "bone")) == "bone+joint"
    together = extract_subsets(method, data, "val", every)
    for subset in every:
        assert torch.allclose(together[subset].features, extract(method, data, "val", subset).features, atol=1e-6)
    assert not torch.allclose(together[("joint",)].features, together[("bone",)].features)


def test_cache_is_used_and_follows_weights_streams_and_data(data, make, tmp_path) -> None:
    method = make(0)
    first = extract(method, data, "test", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    np.save(file, np.zeros(first.features.shape, np.float32))
    assert not extract(method, data, "test", cache=tmp_path).features.any()  # read, not computed
    assert extract(method, data, "test", ("joint",), cache=tmp_path).features.any()
    assert extract(make(1), data, "test", cache=tmp_path).features.any()
    method.sampler.ratio = 0.5
    assert extract(method, data, "test", cache=tmp_path).features.any()


def test_raw_pose_is_the_views_themselves(data, make) -> None:
    method = make(0)
    tables = raw_pose_subsets(method, data, "test", [("joint",), ("joint", "motion")])
    views, _ = method.sample(next(iter(data.batches("test", 100))))
    assert torch.equal(tables[("joint",)].features, views.flatten(1))
    assert tables[("joint", "motion")].features.shape[1] == 2 * views[0].numel()


def test_raw_pose_leaves_confidences_out() -> None:
    backbone = DSTformer("h36m17", width=8, token_features=4, depth=1, num_heads=2)
    method = Supervised(backbone, "h36m17", CenterCrop(4), 3)
    views = torch.rand(2, 1, 4, 17, 3)
    pose = raw_pose(method, views, None, ("joint",))
    assert torch.equal(pose, views[..., :2].flatten(1))


def test_unknown_precision_is_refused(data, make) -> None:
    with pytest.raises(ValueError, match="precision"):
        extract(make(0), data, "test", precision="fp8")
    assert extract(make(0), data, "test", precision="bf16").features.dtype == torch.float32
