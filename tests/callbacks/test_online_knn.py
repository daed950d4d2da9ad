"""The monitor: right numbers, and no trace in the training."""

from __future__ import annotations

import pytest
import torch

from skelact.callbacks.online_knn import OnlineKNN, effective_rank, feature_std


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 8, generator=generator)).Q
    assert effective_rank(basis @ torch.eye(8, 32)) == pytest.approx(8, rel=0.01)
    assert effective_rank(torch.ones(50, 32)) == pytest.approx(1, abs=0.1)


def test_feature_std_tells_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(500, 64, generator=generator)) == pytest.approx(1, abs=0.05)
    assert feature_std(torch.ones(500, 64)) < 1e-5


class Data:
    """Batches of one number per clip; label is its sign."""

    def __init__(self) -> None:
        self.parts = {"train": torch.tensor([-2.0, -1.0, 1.0, 2.0]), "val": torch.tensor([-1.5, 1.5, 0.5])}

    def size(self, part):
        return len(self.parts.get(part, ()))

    def batches(self, part, device=None):
        from skelact.clips import RaggedClips

        for some in self.parts[part].split(2):
            clips = [value.view(1, 1, 1, 1) for value in some]
            yield RaggedClips.pack(clips, (some > 0).long())


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = torch.nn.Parameter(torch.tensor([1.0, 0.1])), torch.nn.Dropout(0.9)

    def features(self, batch):
        return self.dropout(batch.frames[batch.start].flatten(1) * self.weight)


def test_numbers_on_validation_with_training_gallery() -> None:
    method = Linear().train()
    values = OnlineKNN(1).measure(method, Data())
    assert values["val/knn1"] == 100.0 and method.training
    assert set(values) == {"val/knn1", "val/feature_std", "val/effective_rank"}
    few = OnlineKNN(1, max_gallery=3, max_queries=2).measure(method, Data())
    assert few["val/knn1"] in (0.0, 50.0, 100.0)


def test_classes_that_are_not_trained_are_not_looked_for() -> None:
    data = Data()
    data.parts = {"train": torch.tensor([1.0, 2.0]), "val": torch.tensor([-1.5, -0.5])}
    assert set(OnlineKNN(1).measure(Linear(), data)) == {"val/feature_std", "val/effective_rank"}


def test_without_validation_only_spread_and_rank() -> None:
    data = Data()
    data.parts.pop("val")
    assert set(OnlineKNN(1).measure(Linear(), data)) == {"val/feature_std", "val/effective_rank"}


def test_nonsense_interval() -> None:
    with pytest.raises(ValueError, match="every_n_epochs"):
        OnlineKNN(0)
