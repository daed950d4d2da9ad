"""Exactness of the neighbour search, and the votes of the reference estimator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from skelact.protocols.neighbours import _Bound, search, top_k
from skelact.protocols.retrieval import class_scores, vote

GOLDEN = Path(__file__).parents[1] / "golden" / "umurl" / "g_knn.npz"
WEIGHTED = Path(__file__).parents[1] / "golden" / "evaluation" / "knn.npz"


def features(n: int, width: int, decay: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, width + 1).float() ** (-decay / 2)
    return torch.randn(n, width, generator=generator) * scale


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3000), st.integers(1, 20), st.integers(0, 99))
def test_top_k_is_topk(rows: int, columns: int, k: int, seed: int) -> None:
    matrix = features(rows, columns, seed=seed)
    k = min(k, columns)
    value, index = top_k(matrix, k)
    expected = matrix.topk(k, 1)
    assert torch.equal(value, expected.values)
    assert torch.equal(matrix.gather(1, index), expected.values)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_search_is_exact(bounded: bool, decay: float) -> None:
    queries, gallery = features(70, 300, decay, 1), features(5003, 300, decay, 2)
    found = search(queries, gallery, 20, chunk=32, bounded=bounded)
    cosine = F.normalize(queries.double()) @ F.normalize(gallery.double()).T
    expected = cosine.topk(20, 1)
    assert torch.allclose(found.similarity.double(), expected.values, atol=1e-5)
    differs = found.index != expected.indices
    assert differs.float().mean() < 0.01  # swaps within rounding only
    assert torch.allclose(cosine.gather(1, found.index), expected.values, atol=1e-6)


def test_bound_bites_on_decaying_spectra_and_gives_up_on_flat_ones() -> None:
    for decay, bites in ((2.0, True), (0.0, False)):
        queries, gallery = (F.normalize(features(n, 512, decay, n)) for n in (16, 8000))
        assert (_Bound(queries, gallery, width=64).top_k(slice(0, 16), 5) is not None) is bites


def test_search_cuts_k_and_refuses_nonsense() -> None:
    assert search(features(2, 4), features(3, 4), 9).index.shape == (2, 3)
    with pytest.raises(ValueError, match="empty"):
        search(features(2, 4), features(0, 4), 1)
    with pytest.raises(ValueError, match="columns"):
        search(features(2, 4), features(2, 5), 1)


@pytest.mark.parametrize("k", [1, 5, 9, 20])
def test_golden_predictions(k: int) -> None:
    with np.load(GOLDEN) as golden:
        train, test = torch.from_numpy(golden["train_x"]), torch.from_numpy(golden["test_x"])
        labels, truth = torch.from_numpy(golden["train_y"]), golden["test_y"]
        found = search(test, train, k)
        predicted = vote(labels[found.index], 6).numpy()
        assert np.array_equal(predicted, golden[f"pred_k{k}"])
        assert (predicted == truth).mean() == golden[f"acc_k{k}"]
        scores = class_scores(found, labels, 6)
        assert np.array_equal(scores.argmax(1).numpy(), golden["pred_k1"])


@pytest.mark.parametrize("k", [1, 5, 20])
def test_weighted_votes_of_the_3s_caca_code(k: int) -> None:
    with np.load(WEIGHTED) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    found = search(golden["query"], golden["bank"], 20)
    near, cosine = golden["bank_labels"][found.index][:, :k], found.similarity[:, :k]
    votes = vote(near, 6, cosine, temperature=0.1)
    assert torch.equal(votes, golden[f"k{k}/top1"])
    assert (votes == golden["query_labels"]).double().mean() == golden[f"k{k}/acc"]


def test_a_low_temperature_neither_overflows_nor_forgets() -> None:
    labels, cosine = torch.tensor([[2, 1, 1], [1, 0, 2]]), torch.tensor([[0.9, 0.8, 0.8], [0.5, 0.5, 0.5]])
    assert vote(labels, 3, cosine, temperature=1e-3).tolist() == [2, 0]  # the nearest; of equal votes the lowest class
    assert vote(labels, 3, cosine, temperature=10.0).tolist() == [1, 0]


def test_lowest_class_wins_a_tie() -> None:
    assert vote(torch.tensor([[3, 1, 1, 3], [2, 0, 1, 4]]), 5).tolist() == [1, 0]
