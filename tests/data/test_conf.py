"""Every data choice binds to its constructors, and says the same as the stores."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from skelact.data.datamodules import SkeletonDataModule
from skelact.data.multimodal import MultiModalDataModule
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import Reader
from skelact.data.store import StoreError
from skelact.skeleton.layouts import get_layout

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml"))


def _node(choice, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        extra = ["data.layout=kinect20"] if choice == "custom" else []
        cfg = compose(overrides=[f"+data={choice}", "+paths.data=stores", "+seed=7", *extra, *overrides])
    OmegaConf.resolve(cfg)
    return cfg.data


@pytest.mark.parametrize("choice", CHOICES)
def test_keys_are_the_constructors_arguments(choice):
    node = _node(choice)
    kinds = (SkeletonDataModule, MultiModalDataModule)[: 2 if "modalities" in node else 1]
    parameters = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} - {"self", "options"}
    assert set(node) - {"_target_", "reader", "media"} == parameters
    name = choice.removesuffix("_multi")  # the stores are the same
    folder = name if node.pipeline is None else f"{name}_{node.pipeline}"
    skeletons = {"hdm05_rendered": "hdm05_views"}.get(folder, folder)
    assert node.store == f"stores/{skeletons}" and node.seed == 7 and node.name == name
    with open_dict(node):
        reader = node.pop("reader")
        node.pop("media")
    module = hydra.utils.instantiate(node, _convert_="all")
    assert isinstance(module, kinds[-1])
    if reader is not None:
        assert isinstance(hydra.utils.instantiate(reader, _convert_="all"), Reader)
    assert get_layout(node.layout).dims == (2 if choice.endswith(("_hrnet", "_2d")) else 3)


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.endswith(("_hrnet", "_3danno"))])
def test_pose_files_are_prepared_and_read_by_their_choice(choice, tmp_path):
    node = _node(choice, f"paths.data={tmp_path}")
    count, flat = 10, choice.endswith("_hrnet")
    frames = np.ones((1, 4, 17, 2) if flat else (1, 4, 25, 3), np.float16)
    names = [f"S001C00{k % 3 + 1}P{k + 13:03d}R001A{k + 1:03d}" for k in range(count)]
    notes = [
        {"frame_dir": name, "label": k, "total_frames": 4, "img_shape": (9, 16), "keypoint": frames}
        | ({"keypoint_score": frames[..., 0]} if flat else {})
        for k, name in enumerate(names)
    ]
    parts = {"default": ("train", "val"), "1": ("train1", "test1")}
    train, test = parts.get(node.split, (f"{node.split}_train", f"{node.split}_val"))
    content = {"split": {train: names[:7], test: names[7:]}, "annotations": notes}
    (tmp_path / "set.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with open_dict(node):
        reader = hydra.utils.instantiate(node.pop("reader"), _convert_="all")
        node.pop("media")
    prepare_dataset(reader, tmp_path / "set.pkl", node.store, strict=True, progress=False)
    module = hydra.utils.instantiate(node, _convert_="all")
    assert module.clip_names("test") == names[7:] and len(module.clip_names("val")) >= 1
    batch = next(module.batches("train+val"))
    assert batch.shape == (2, 17 if flat else 25, 3) and module.num_classes == node.num_classes
    assert module.card["source"] and module.card["licence"] and module.card["citation"]


@pytest.mark.parametrize("choice", ["ntu60", "ntu120", "pku1", "pku2"])
def test_sets_that_must_be_prepared_say_how(choice, tmp_path):
    node = _node(choice, f"paths.data={tmp_path}")
    with open_dict(node):
        node.pop("reader"), node.pop("media")
    pipeline = f" data.pipeline={node.pipeline}" if node.pipeline else ""
    with pytest.raises(StoreError, match=f"skelact prepare data={choice}{pipeline} source="):
        hydra.utils.instantiate(node, _convert_="all").setup()
    assert (node.layout, node.persons) == ("ntu25", 2)


def test_the_pipeline_names_the_store_and_reaches_the_reader():
    node = _node("ntu120", "data.pipeline=denoise")
    assert node.store == "stores/ntu120_denoise" and node.reader.pipeline == "denoise"


@pytest.mark.parametrize("choice", ["hdm05", "hdm05_views"])
def test_embedded_choices_work_at_once(choice, embedded_root):
    node = _node(choice, f"paths.data={embedded_root}")
    with open_dict(node):
        node.pop("reader"), node.pop("media")
    module = hydra.utils.instantiate(node, _convert_="all")
    batch = next(module.batches("test"))
    assert batch.shape == (1, 31, 3) and module.num_classes == 11
    centre = module.layout.center
    assert batch.frames[:, 0, centre].abs().max() == 0


def test_embedded_2d_poses_work_at_once(embedded_root):
    node = _node("hdm05_2d", f"paths.data={embedded_root}")
    with open_dict(node):
        node.pop("reader"), node.pop("media")
    module = hydra.utils.instantiate(node, _convert_="all")
    batch = next(module.batches("test"))
    assert batch.shape == (1, 31, 3) and batch.mask is not None and module.card["source"].startswith("SIMULATED")
    assert (len(module.rows("train+val")), len(module.rows("test"))) == (567, 297)
