import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from skelact.benchmarks.multimodal import write_stores
from skelact.benchmarks.steps import PARTS
from skelact.benchmarks.training import measure
from skelact.cli import main
from skelact.data.media import MediaStore
from skelact.data.store import Store

SMALL = [
    "method=actionmae", "data=hdm05_rendered", "data.modalities=[skeleton,rgb,depth]", "data.batch_size=2",
    "data.frames=2", "method.width=32", "method.num_heads=2", "method.fusion_depth=1", "backbone.width=16",
    "frames=8", "seconds=0.01", "trainer=cpu", "method.encoders.rgb.name=test_resnet",
    "method.encoders.rgb.tag=null",
    "method.encoders.rgb.pretrained=false", "method.encoders.depth.name=test_resnet", "method.encoders.depth.tag=null",
    "method.encoders.depth.pretrained=false",
]  # fmt: skip


def _composed():
    with initialize_config_module("skelact.conf", version_base="1.3"):
        cfg = compose("benchmark", overrides=SMALL)
    media = OmegaConf.to_container(cfg.data.media, resolve=True)
    OmegaConf.set_struct(cfg, False)
    del cfg.data["reader"], cfg.data["media"]
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True), media


def test_the_parts_the_cache_and_the_subsets_are_measured():
    config, media = _composed()
    numbers = measure(config, media)
    assert numbers["subsets of modalities"] == 7
    assert numbers["all subsets, largest difference of logits"] < 1e-4 * numbers["all subsets, largest logit"]
    ratio = numbers["all subsets, a pass each, ms"] / numbers["all subsets, one pass, ms"]
    assert numbers["all subsets, times as fast in one pass"] == pytest.approx(ratio)
    cached = "cached features of frozen encoders: "
    for title in ("", cached):
        assert numbers[f"{title}clips/s"] == pytest.approx(2e3 / numbers[f"{title}step, ms"])
        assert min(numbers[f"{title}  {part}, ms"] for part in PARTS) > 0
    assert numbers[f"{cached}times as fast"] > 0


def test_made_up_stores_hold_what_the_configuration_stores(tmp_path):
    data = {
        "modalities": ["skeleton", "inertial", "rgb", "depth"], "split": "xsub", "layout": "ntu25", "persons": 2,
        "channels": 3, "num_classes": 3,
    }  # fmt: skip
    media = {
        "inertial": {"folder": None},
        "rgb": {"size": 27, "encoding": "jpeg", "frames": 5},
        "depth": {"size": [20, 30], "encoding": "raw", "colour": "jet"},
    }
    write_stores(tmp_path, data, media, 4, 2)
    assert Store(tmp_path / "made_up").shape == (6 * 80, 2, 25, 3)
    rgb, depth = (MediaStore(tmp_path / f"made_up.{name}") for name in ("rgb", "depth"))
    assert rgb.read(0).shape == (5, 27, 48, 3) and depth.read(5).shape == (32, 20, 30, 1) and rgb.encoded
    assert depth.card["media"]["colour"] == "jet" and np.unique(rgb.label).tolist() == [0, 1, 2]
    assert MediaStore(tmp_path / "made_up.inertial").read(0).shape == (120, 6)


def test_the_command_takes_data_of_several_modalities(monkeypatch, tmp_path):
    seen, found = {}, {"method": "ActionMAE", "device": "cpu", "parameters, millions": 1.0, "clips/s": 2.0}
    monkeypatch.setattr(
        "skelact.benchmarks.training.measure", lambda config, media: seen.update(config["data"], media=media) or found
    )
    assert main(["benchmark", "method=actionmae", f"output={tmp_path / 'results.json'}"]) == 0
    assert seen["name"] == "hdm05_rendered" and seen["media"]["rgb"]["encoding"] == "jpeg"
