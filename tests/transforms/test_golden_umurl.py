"""Sampling, augmentation, normalisation and streams against tensors computed with UmURL's published code.

The reference draws from NumPy's and Python's global generators; the draws are made again here, in its order, and given
to the library's transforms. Fixtures are (N, C, T, V, M), as the originals have them.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.clips import RaggedClips
from skelact.skeleton import derive, get_layout
from skelact.transforms.normalize import Normalize
from skelact.transforms.sampling import CenterCrop, CropResize, resample
from skelact.transforms.spatial import Compose, JointCorruption, OneOf, Shear

GOLDEN = Path(__file__).parents[1] / "golden" / "umurl"
NTU = get_layout("ntu25")


@pytest.fixture(scope="module")
def augment():
    return dict(np.load(GOLDEN / "e_augment.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def feeder():
    return dict(np.load(GOLDEN / "e_feeder.npz", allow_pickle=False))


def clip(raw, length):
    """(C, T, V, M) array with padding -> one ragged clip."""
    return RaggedClips.pack([torch.from_numpy(raw[:, :length]).permute(1, 3, 2, 0).contiguous()])


def golden(views):
    """(1, M, T, V, C) -> (C, T, V, M) array."""
    return views[0].permute(3, 1, 2, 0).numpy()


def views_of(array):
    return torch.from_numpy(array).permute(3, 1, 2, 0)[None]


def seed(number):
    random.seed(number)
    np.random.seed(number)


def draw_crop(n, low=0.1, high=1.0, shortest=64):
    share = np.random.rand() * (high - low) + low
    length = min(max(int(np.floor(n * share)), shortest), n)
    return length, np.random.randint(0, n - length + 1)


def draw_corruption():
    linear = random.random() >= 0.5
    joints = np.random.choice(25, 15, replace=False)
    matrix = [[random.uniform(-1, 1) for _ in range(3)] for _ in range(3)] if linear else np.zeros((3, 3))
    return {
        "linear": torch.tensor([linear]),
        "joints": torch.from_numpy(joints)[None],
        "matrix": torch.tensor(np.array(matrix), dtype=torch.float32)[None],
    }


def draw_shear():
    matrix = np.eye(3)
    for row, column in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        matrix[row, column] = random.uniform(-1, 1)
    return {"shear": torch.tensor(matrix, dtype=torch.float32)[None]}


@pytest.mark.parametrize(
    "case", [*(f"sample{i}_seed{s}" for i in (0, 1) for s in (0, 1, 2)), "long_seed3", "long_seed4"]
)
def test_crop_resize(augment, case):
    name, number = case.split("_seed")
    raw, n = (
        (augment["long"], int(augment["long_num_frames"]))
        if name == "long"
        else (
            augment["raw"][int(name[-1])],
            int(augment["num_frames"][int(name[-1])]),
        )
    )
    seed(int(number))
    length, start = draw_crop(n)
    assert [length, start] == augment[f"tcr_{case}_len_start"].tolist()
    views, mask = resample(clip(raw, n), torch.tensor([start]), torch.tensor([length]), 64)
    assert mask is None
    np.testing.assert_allclose(golden(views), augment[f"tcr_{case}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["sample0_seed1", "sample1_seed2", "long_seed3", "long_seed4"])
def test_crop_length(augment, case):
    n = int(augment["long_num_frames"] if case.startswith("long") else augment["num_frames"][int(case[6])])
    seed(int(case[-1]))
    share = torch.tensor([np.random.rand() * 0.9 + 0.1], dtype=torch.float64)
    assert CropResize(64).crop_length(torch.tensor([n]), share).tolist() == [augment[f"tcr_{case}_len_start"][0]]


@pytest.mark.parametrize(("sample", "ratio"), [(0, 1.0), (1, 1.0), (0, 0.9)])
def test_center_crop(augment, sample, ratio):
    views, _ = CenterCrop(64, ratio)(clip(augment["raw"][sample], int(augment["num_frames"][sample])))
    np.testing.assert_allclose(golden(views), augment[f"center_sample{sample}_ratio{ratio}"], rtol=0, atol=1e-6)


def test_downstream_random_branch(augment):
    seed(9)
    n = int(augment["num_frames"][0])
    length, start = draw_crop(n, 0.5, 1.0)
    views, _ = resample(clip(augment["raw"][0], n), torch.tensor([start]), torch.tensor([length]), 64)
    np.testing.assert_allclose(golden(views), augment["trainbranch_sample0_seed9"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("branch", ["mask", "linear"])
def test_joint_corruption(augment, branch):
    seed(int(augment[f"corrupt_{branch}_seed"]))
    params = draw_corruption()
    assert bool(params["linear"]) == (branch == "linear")
    assert params["joints"][0].tolist() == augment[f"corrupt_{branch}_joints"].tolist()
    if branch == "linear":
        np.testing.assert_allclose(params["matrix"][0].numpy(), augment["corrupt_linear_matrix"], rtol=1e-6)
    out, _ = JointCorruption(15).replay(views_of(augment["x64"]), **params)
    np.testing.assert_allclose(golden(out), augment[f"corrupt_{branch}_out"], rtol=0, atol=1e-6)


def test_shear(augment):
    seed(int(augment["shear_seed"]))
    params = draw_shear()
    np.testing.assert_allclose(params["shear"][0].numpy(), augment["shear_matrix"], rtol=1e-6)
    out, _ = Shear().replay(views_of(augment["x64"]), **params)
    np.testing.assert_allclose(golden(out), augment["shear_out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sample", "number"), [(0, 100), (0, 101), (1, 102)])
def test_four_pretraining_views(feeder, sample, number):
    seed(number)
    n = int(feeder["num_frames"][sample])
    clips = clip(feeder["raw"][sample], n)
    transform = Compose([OneOf([JointCorruption(15), Shear()])])
    for view in range(1, 5):
        length, start = draw_crop(n)
        views, _ = resample(clips, torch.tensor([start]), torch.tensor([length]), 64)
        sheared = random.random() >= 0.5
        idle = transform.transforms[0].draw(_draws(), views)  # parameters of the branch that is not taken
        part, drawn = ("Shear0", draw_shear()) if sheared else ("JointCorruption0", draw_corruption())
        params = {**idle, "choice": torch.tensor([int(sheared)]), **{f"{part}/{k}": v for k, v in drawn.items()}}
        out, _ = transform.replay(views, **{f"OneOf0/{k}": v for k, v in params.items()})
        key = f"pre_sample{sample}_seed{number}_v{view}"
        assert bool(feeder[f"{key}_isfloat64"]) == sheared
        np.testing.assert_allclose(golden(out), feeder[key], rtol=0, atol=1e-6)


def _draws():
    from skelact.transforms.draws import Draws

    return Draws(0, 0, torch.tensor([0]))


def tokens(stream):
    """(N, M, T, V, C) -> temporal tokens (N, T, M*V*C) and spatial tokens (N, M*V, T*C)."""
    return stream.permute(0, 2, 1, 3, 4).flatten(2).numpy(), stream.permute(0, 1, 3, 2, 4).flatten(3).flatten(
        1, 2
    ).numpy()


def test_downstream_tokens(feeder):
    views, _ = CenterCrop(64)(clip(feeder["raw"][0], int(feeder["num_frames"][0])))
    for letter, stream in zip("jbm", derive(views, ("joint", "bone", "motion"), NTU).values(), strict=True):
        temporal, spatial = tokens(stream)
        np.testing.assert_allclose(temporal[0], feeder[f"down_sample0_{letter}t"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(spatial[0], feeder[f"down_sample0_{letter}s"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 30, 65_536])
def test_prenormalize(masked, chunk):
    data = np.load(GOLDEN / "h_prenormalize.npz", allow_pickle=False)
    raw, out = (torch.from_numpy(data[key]).permute(0, 2, 4, 3, 1).contiguous() for key in ("raw", "out"))
    mask = (raw.sum((-2, -1)) != 0)[..., None].expand(raw.shape[:-1]) if masked else None
    clips = RaggedClips.pack(list(raw), mask=None if mask is None else list(mask))
    result = Normalize("umurl", "ntu25", chunk=chunk)(clips)
    assert torch.equal(result.start, clips.start) and torch.equal(result.length, clips.length)
    for row in range(len(clips)):
        np.testing.assert_allclose(result.clip(row).numpy(), out[row].numpy(), rtol=0, atol=1e-5)
