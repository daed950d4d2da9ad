"""Retrieval in the space of a method's own embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from skelact.errors import SkelactError
from skelact.methods.umurl import UmURL
from skelact.protocols.features import extract_subsets
from skelact.protocols.retrieval import Retrieval


class WithEmbedding(UmURL):
    """The mean over streams of what the projectors give, not normalised."""

    def embed_features(self, views, streams=None, mask=None):
        single = self.derive(views, streams, mask)
        heads = {"joint": self.j_projector, "bone": self.b_projector, "motion": self.m_projector}
        parts = [heads[name](self.backbone.forward_features({name: x}, mask)) for name, x in single.items()]
        return torch.stack(parts).mean(0)


@pytest.fixture
def embedding(make):
    method = make(0)
    method.__class__ = WithEmbedding
    return method


def test_neighbours_are_sought_where_the_projectors_say(data, embedding):
    record, raw = Retrieval(k=[1], labels="all", baselines=["raw_pose"], space="embedding").run(embedding, data)
    assert record.extra["space"] == "embedding" and "space" not in raw.extra
    parts = {}
    for part in ("train", "val", "test"):
        views, mask = embedding.eval().sample(next(iter(data.batches(part, 100))))
        with torch.no_grad():
            parts[part] = embedding.embed_features(views, None, mask).numpy()
    gallery = np.concatenate([parts["train"], parts["val"]])
    labels = np.concatenate([data.labels("train"), data.labels("val")])
    model = KNeighborsClassifier(1, metric="cosine").fit(gallery, labels)
    assert record.metrics["knn1"] == pytest.approx(100 * model.score(parts["test"], data.labels("test")))


def test_kept_embeddings_follow_the_projectors(data, embedding, tmp_path):
    def take(space):
        return extract_subsets(embedding, data, "test", [("joint",)], cache=tmp_path, space=space)[("joint",)].features

    feature, first = take("feature"), take("embedding")
    assert feature.shape == (12, 32) and first.shape == (12, 16)
    assert torch.equal(take("embedding"), first) and len(list(tmp_path.iterdir())) == 2
    with torch.no_grad():
        next(embedding.j_projector.parameters()).mul_(-1)
    assert not torch.allclose(take("embedding"), first)
    assert torch.equal(take("feature"), feature) and len(list(tmp_path.iterdir())) == 3


def test_one_stream_of_several(data, make):
    method = make(0)
    alone, raw = Retrieval(k=[1], labels="all", streams=["bone"], baselines=["raw_pose"]).run(method, data)
    assert alone.extra["streams"] == raw.extra["streams"] == "bone"
    whole, _ = Retrieval(k=[1], labels="all", baselines=["raw_pose"]).run(method, data)
    assert alone.gflops < whole.gflops


def test_methods_without_an_embedding_are_told(data, make):
    with pytest.raises(SkelactError, match=r"UmURL has no embed_features.*protocol\.space=feature"):
        Retrieval(k=[1], labels="all", space="embedding").run(make(0), data)
    with pytest.raises(SkelactError, match=r"protocol\.space=projector"):
        Retrieval(space="projector")
