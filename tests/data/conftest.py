"""Small stores and made-up originals for the tests of the data room."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from skelact.data.store import Store
from skelact.data.writer import StoreWriter
from skelact.skeleton.layouts import get_layout

SHARED = Path(os.environ.get("SKELACT_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def shared(name: str) -> Path:
    """A dataset that may not be redistributed, or skip."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} in {SHARED} (set SKELACT_SHARED_DATA)")
    return SHARED / name


def make_card(**changes):
    return {
        "name": "toy",
        "layout": get_layout("kinect20").to_dict(),
        "channels": ["x", "y", "z"],
        "unit": "m",
        "fps": 30.0,
        "persons": 1,
        "class_names": ["a", "b", "c"],
        "source": "made up",
        "licence": "",
        "citation": "",
        "splits": {
            "xsub": {
                "factor": "subject",
                "train": [1, 2, 3],
                "test": [4],
                "val": {"factor": "subject", "values": [3]},
            }
        },
        **changes,
    }


def make_clips(count=24, seed=0, persons=1):
    """(name, frames, label, mask, subject); the third clip has one frame."""
    draw = np.random.default_rng(seed)
    for k in range(count):
        length = 1 if k == 2 else int(draw.integers(2, 30))
        frames = draw.standard_normal((length, persons, 20, 3)).astype(np.float32)
        mask = draw.random((length, persons, 20)) > 0.1
        frames[~mask] = 0
        yield f"clip{k:03d}", frames, k % 3, mask, 1 + k % 4


def write_store(path: Path, masked=False, dtype="float32", count=24, **changes) -> Store:
    card = make_card(**changes)
    with StoreWriter(path, card, dtype, masked) as writer:
        for name, frames, label, mask, subject in make_clips(count, persons=card["persons"]):
            writer.add(name, frames, label, mask if masked else None, subject=subject)
    return Store(path)


@pytest.fixture
def store(tmp_path) -> Store:
    return write_store(tmp_path / "toy")


@pytest.fixture
def masked_store(tmp_path) -> Store:
    return write_store(tmp_path / "masked", masked=True)


@pytest.fixture(scope="session")
def embedded_root(tmp_path_factory) -> Path:
    """A folder in which the embedded datasets prepare themselves once a session."""
    return tmp_path_factory.mktemp("stores")
