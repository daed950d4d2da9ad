"""Every data choice binds to its constructors, and says the same as the stores."""

from __future__ import annotations

import inspect
from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from skelact.data.datamodules import SkeletonDataModule
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
    parameters = set(inspect.signature(SkeletonDataModule.__init__).parameters) - {"self"}
    assert set(node) - {"_target_", "reader", "media"} == parameters
    folder = choice if node.pipeline is None else f"{choice}_{node.pipeline}"
    assert node.store == f"stores/{folder}" and node.seed == 7 and node.name == choice
    with open_dict(node):
        reader = node.pop("reader")
        node.pop("media")
    module = hydra.utils.instantiate(node, _convert_="all")
    assert isinstance(module, SkeletonDataModule)
    if reader is not None:
        assert isinstance(hydra.utils.instantiate(reader, _convert_="all"), Reader)
    assert get_layout(node.layout).dims == 3


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
