"""A tiny dataset of the user's own, and one short run on it, shared by the tests of the command and the engine."""

import csv
import os

import numpy as np
import pytest

TINY = [
    "frames=8", "backbone.width=8", "method.projector_width=16", "data.batch_size=8", "callbacks=minimal",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "trainer.max_epochs=-1", "trainer.max_steps=5",
    "protocols.linear.epochs=2", "protocols.linear.draws=2", "protocols.linear.seeds=2", "protocols.retrieval.draws=2",
    "protocols.missing.epochs=2", "protocols.missing.draws=2", "protocols.missing.seeds=2",
    "augment.transform.transforms.0.joints=2",
]  # fmt: skip
LAYOUT = """\
name: stick
joints: [hips, chest, left_shoulder, right_shoulder, left_foot, right_foot]
bones: {chest: hips, left_shoulder: chest, right_shoulder: chest, left_foot: hips, right_foot: hips}
mirror: [[left_shoulder, right_shoulder], [left_foot, right_foot]]
shoulders: [left_shoulder, right_shoulder]
"""


def write_clips(folder, clips=36, classes=3, seed=0):
    """A folder of clips with a clips table: three motions, two thirds to train on, some of them to validate."""
    random = np.random.default_rng(seed)
    pose = np.array([[0, 0, 0], [0, 0.5, 0], [-0.2, 0.5, 0], [0.2, 0.5, 0], [-0.1, -0.8, 0], [0.1, -0.8, 0.01]])
    folder.mkdir(parents=True)
    with open(folder / "clips.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "file", "label", "split"])
        for i in range(clips):
            label, length = i % classes, int(random.integers(9, 20))
            swing = np.sin(np.linspace(0, 2 * np.pi * (label + 1), length))[:, None, None]
            direction = np.zeros((6, 3))
            direction[2 + label] = [0.3, 0.4, 0.2]
            frames = pose + swing * direction + 0.02 * random.standard_normal((length, 6, 3))
            np.save(folder / f"clip{i:02d}.npy", frames.astype(np.float32))
            part = ("train", "train", "train", "val", "test", "test")[i // classes % 6]
            table.writerow([f"clip{i:02d}", f"clip{i:02d}.npy", f"motion{label}", part])
    (folder / "stick.yaml").write_text(LAYOUT)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Folder of the session, with the raw clips in `clips` and the prepared store in `data/tiny`."""
    from skelact.cli import main

    root = tmp_path_factory.mktemp("engine")
    source = write_clips(root / "clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(root / "data"))
        patch.chdir(root)
        arguments = ["prepare", "data=custom", "data.name=tiny", f"source={source}", f"layout={source / 'stick.yaml'}"]
        assert main(arguments) == 0
    return root


@pytest.fixture
def skelact_run(home, monkeypatch, tmp_path):
    """Call the command in this process, in an empty folder; returns the exit code."""
    from skelact.cli import main

    monkeypatch.setenv("SKELACT_DATA", str(home / "data"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("SKELACT_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, tiny=True):
        own = ["data=custom", "data.name=tiny", *TINY] if tiny else []
        return main([*own, *arguments])

    return call


@pytest.fixture(scope="session")
def trained(home):
    """A run directory: pretrained for five steps, then asked all three questions."""
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        arguments = ["data=custom", "data.name=tiny", *TINY, "evaluate=[linear,retrieval,missing]", "run_dir=trained"]
        assert main(arguments) == 0
    return home / "trained"


@pytest.fixture(scope="session")
def raw_clips():
    """Makes a folder of raw clips: `raw_clips(folder, clips=36)`."""
    return write_clips


@pytest.fixture(scope="session")
def tiny_options():
    """Overrides that make a run short."""
    return ["data=custom", "data.name=tiny", *TINY]


@pytest.fixture
def rank_environment(home):
    """Environment of a process of its own."""
    return {**os.environ, "SKELACT_DATA": str(home / "data"), "OMP_NUM_THREADS": "1"}


def _rank(rank, function, counts, folder):
    import torch

    torch.set_num_threads(1)  # a forked process must not use the thread pool of its parent
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=len(counts))
    torch.save(function(rank, counts), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def on_ranks(tmp_path):
    """Calls `function(rank, counts)` in one gloo process an entry of `counts`; returns what they return, in order."""
    import torch

    def call(function, counts):
        arguments = (function, counts, str(tmp_path))
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=len(counts), start_method="fork")
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(counts))]

    return call
