"""A made-up dataset small enough to probe in a second: three motions, four subjects, seen twice each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skelact.backbones.umurl import UmURLEncoder
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.writer import StoreWriter
from skelact.methods.umurl import UmURL
from skelact.skeleton.layouts import get_layout
from skelact.transforms.sampling import CenterCrop

STREAMS = ("joint", "bone", "motion")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    layout = get_layout("kinect20")
    rule = {"factor": "subject", "train": [1, 2, 3], "val": {"factor": "subject", "values": [3]}}
    card = {
        "name": "made_up", "layout": layout.to_dict(), "channels": ["x", "y", "z"], "unit": "m",
        "fps": 30.0, "persons": 1,
        "class_names": ["wave", "bow", "jump"], "source": "made up", "licence": "none", "citation": "none",
        "splits": {"xsub": rule, "noval": {"factor": "subject", "train": [1, 2, 3]}},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    motions = rng.normal(size=(3, 1, layout.num_joints, 3))
    path = tmp_path_factory.mktemp("data") / "made_up"
    with StoreWriter(path, card) as writer:
        for subject in (1, 2, 3, 4):
            for label in range(3):
                for take in range(4):
                    length = int(rng.integers(9, 20))
                    phase = np.sin(np.linspace(0, 3, length))[:, None, None, None]
                    frames = phase * motions[label] + 0.3 * rng.normal(size=(length, 1, layout.num_joints, 3))
                    name = f"s{subject}a{label}t{take}"
                    columns = {"subject": subject, "group": name[:-1] + str(take // 2)}
                    writer.add(name, frames.astype(np.float32), label, **columns)
        writer.finish()
    return path


@pytest.fixture
def data(store):
    return SkeletonDataModule(str(store), "xsub", eval_batch_size=7)


@pytest.fixture
def make(data):
    def build(seed: int) -> UmURL:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = UmURLEncoder(data.layout, persons=1, frames=8, width=16, streams=STREAMS)
            return UmURL(encoder, data.layout.to_dict(), CenterCrop(8), streams=STREAMS, projector_width=16)

    return build
