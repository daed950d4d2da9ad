"""MotionBERT's and pyskl's own outputs, read back through files in the form of pyskl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.pyskl import PysklReader
from skelact.data.readers.pyskl_poses import scale_points
from skelact.engine.build import build
from skelact.skeleton import convert
from skelact.transforms.draws import Draws

from ..pyskl_files import write

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "maskclr" / "pose2d.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture
def source(golden, tmp_path):
    notes = [
        {
            "frame_dir": f"S001C001P001R{i + 1:03d}A{int(golden[f'raw{i}_label']) + 1:03d}",
            "label": int(golden[f"raw{i}_label"]),
            "img_shape": tuple(golden[f"raw{i}_img_shape"].tolist()),
            "total_frames": golden[f"raw{i}_keypoint"].shape[1],
            "keypoint": golden[f"raw{i}_keypoint"],
            "keypoint_score": golden[f"raw{i}_score"],
        }
        for i in range(4)
    ]
    names = [note["frame_dir"] for note in notes]
    return write(tmp_path / "set.pkl", {"split": {"train": names[:2], "val": names[2:]}, "annotations": notes})


def clips(source, **options):
    reader = PysklReader("poses", **options)
    return [reader.read(item) for item in reader.scan(source)]


def test_pixel_normalisation(golden, source):
    for i, clip in enumerate(clips(source, coordinates="motionbert", repair="none")):
        want = golden[f"raw{i}_cam"]
        np.testing.assert_allclose(clip.frames[:, : len(want), :, :2].swapaxes(0, 1), want, atol=2e-6)
        assert clip.mask is None and (clip.frames[:, len(want) :] == 0).all()


def test_half_precision_input_gives_the_single_precision_result(golden):
    keypoint = golden["raw0_keypoint"]
    np.testing.assert_array_equal(
        scale_points(keypoint, 1080, 1920, "motionbert"), scale_points(keypoint.astype("f4"), 1080, 1920, "motionbert")
    )


def test_identity_repair(golden, source):
    found = clips(source, coordinates="motionbert")
    for i, clip in enumerate(found):
        want = golden[f"raw{i}_tracked"]
        np.testing.assert_allclose(clip.frames[:, : len(want), :, :2].swapaxes(0, 1), want, atol=2e-6)
        scores = golden[f"raw{i}_score"].astype(np.float32)  # as released they stay in their slots
        np.testing.assert_array_equal(clip.frames[:, : len(scores), :, 2].swapaxes(0, 1), scores)
    assert not np.array_equal(golden["raw1_tracked"], golden["raw1_cam"])  # one clip does need it
    corrected = clips(source, coordinates="motionbert", repair="corrected")[1].frames
    np.testing.assert_array_equal(corrected[..., :2], found[1].frames[..., :2])
    score = golden["raw1_score"].astype(np.float32)
    np.testing.assert_array_equal(corrected[20:33, ..., 2].swapaxes(0, 1), score[::-1, 20:33])
    np.testing.assert_array_equal(corrected[:20, ..., 2].swapaxes(0, 1), score[:, :20])


def test_joint_conversion(golden):
    for i in range(4):
        out, _ = convert(golden[f"raw{i}_tracked"], "coco17", "h36m17")
        np.testing.assert_allclose(out, golden[f"raw{i}_h36m"], atol=2e-6)


def test_from_the_file_to_the_stored_clip_of_the_released_code(golden, source):
    found = clips(source, coordinates="motionbert")
    for i in (0, 1, 3):
        frames, _ = convert(found[i].frames, "coco17", "h36m17", score_channel=True, scores="as_released")
        rows = golden[f"resample_det_{len(frames)}_to_40"]
        np.testing.assert_allclose(frames[rows].swapaxes(0, 1), golden[f"raw{i}_motion_eval40"], atol=2e-6)


def test_from_the_file_to_the_views_of_the_released_code(golden, source, tmp_path, monkeypatch):
    """Through store, data module, sampling@method.sampler=motionbert and augment=motionbert_released."""
    with np.load(GOLDEN / "maskclr" / "views2d.npz", allow_pickle=False) as arrays:
        views = {key: arrays[key] for key in arrays.files}
    overrides = [
        "data=ntu60_hrnet", "data.pipeline=motionbert", "data.layout=h36m17", "data.scores=as_released",
        "preset=as_released", "frames=40", "augment=motionbert_released", "sampling@method.sampler=motionbert",
        "data.split=default", "data.reader.ntu=null", f"paths.data={tmp_path}", "name=test", "run_dir=test",
    ]  # fmt: skip
    with initialize_config_module("skelact.conf", version_base="1.3"):
        nodes = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    reader, _ = nodes["data"].pop("reader"), nodes["data"].pop("media")
    prepare_dataset(build(reader), source, nodes["data"]["store"], strict=True, progress=False)
    module, sampler = build(nodes["data"]), build(nodes["method"]["sampler"])
    maker = build(nodes["augment"] | {"views": 1})
    training, held_out = next(module.batches("train+val")), next(module.batches("test"))

    for clips, place, want in ((training, 0, "raw0_crop22"), (training, 1, "ds_xsub_val_item0"),
                               (held_out, 1, "ds_xsub_val_item2")):  # fmt: skip
        out, mask = sampler(clips)
        assert mask is None
        np.testing.assert_allclose(out[place], views[want], atol=1e-5)
    assert (out[0, 1, ..., :2] != 0).all()  # the absent person has become a point

    frozen = np.random.RandomState(0)  # the released code draws frames when it loads the data, the rest at each access
    access = [np.random.RandomState(500 + item) for item in range(2)]
    recorded = {"index.jitter": np.stack([frozen.random_sample(40) for _ in range(2)])}
    recorded["move.angle"] = np.radians([draw.uniform(-10, 10, 2) for draw in access])
    recorded["move.scale"] = np.stack([draw.uniform(0.9, 1.1, 2) for draw in access])
    recorded["move.shift"] = np.stack([draw.uniform(-0.1, 0.1, (2, 2)) for draw in access])
    recorded["crop_scale.ratio"] = np.stack([draw.uniform(1, 3) for draw in access])
    asked = []

    def uniform(self, name, *shape, low=0.0, high=1.0):
        asked.append(name)
        return torch.from_numpy(recorded[name]).float()

    monkeypatch.setattr(Draws, "uniform", uniform)
    ((out, mask),) = maker(training, Draws(0, 0, training.index))
    assert mask is None and asked == list(recorded)
    for item in range(2):
        np.testing.assert_allclose(out[item], views[f"ds_xsub_train_item{item}"], atol=1e-5)
        assert views["ds_xsub_train_labels"][item] == training.label[item] == golden[f"raw{item}_label"]


def test_ntu_tracks_of_pyskl(tmp_path):
    with np.load(GOLDEN / "ntu_preprocess" / "pyskl.npz", allow_pickle=False) as arrays:
        want = {name: arrays[name] for name in arrays.files}
    assert len(want) == 8 and {array.dtype.name for array in want.values()} == {"float16"}
    notes = [
        {"frame_dir": name, "label": int(name[-3:]) - 1, "keypoint": array, "total_frames": array.shape[1]}
        for name, array in want.items()
    ]
    reader = PysklReader("ntu120_3danno", layout="ntu25")
    items = reader.scan(write(tmp_path / "ntu.pkl", {"split": {}, "annotations": notes}))
    assert [item.name for item in items] == list(want) and reader.persons == 2 and not reader.notes
    for item in items:
        clip, array = reader.read(item), want[item.name]
        people, frames = array.shape[:2]
        assert clip.frames.shape == (frames, 2, 25, 3) and clip.frames.dtype == np.float32
        np.testing.assert_array_equal(clip.frames[:, :people], array.swapaxes(0, 1).astype(np.float32))
        there = (array != 0).any(axis=(2, 3)).T
        np.testing.assert_array_equal(clip.mask[:, :people], np.repeat(there[..., None], 25, -1))
        assert not clip.mask[:, people:].any()
