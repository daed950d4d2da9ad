"""Every choice composes, and what it says fits the constructors."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import skelact.conf
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from skelact.engine.build import blank, build, check_types, locate

CONF = Path(skelact.conf.__path__[0])
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
GROUPS = ("data", "augment", "backbone", "method", "protocol", "trainer", "logger", "callbacks")
SAMPLINGS = sorted(p.stem for p in (CONF / "sampling").glob("*.yaml"))
CHOICES = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml")) if not p.stem.startswith("_")]


def composed(*overrides):
    own = [] if any(o.startswith("experiment=") for o in overrides) else ["name=test"]
    with initialize_config_module("skelact.conf", version_base="1.3"):
        cfg = compose("config", overrides=["run_dir=runs/test", *own, *overrides])
    OmegaConf.set_struct(cfg, False)
    if OmegaConf.is_missing(cfg.data, "layout"):
        cfg.data.update(layout="ntu25", persons=1, channels=3)  # what a card would say
    del cfg.data["reader"], cfg.data["media"]  # what `skelact prepare` builds
    assert cfg.trainer.pop("compile") is False  # what the engine reads
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def nodes(tree, where=""):
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield where, tree
        for key, value in tree.items():
            yield from nodes(value, f"{where}.{key}")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from nodes(value, f"{where}[{i}]")


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "data"])
def test_readers_fit_their_constructors(choice):
    with initialize_config_module("skelact.conf", version_base="1.3"):
        cfg = compose("prepare", overrides=[f"data={choice}"])
    if OmegaConf.is_missing(cfg.data, "layout"):
        cfg.data.layout = "ntu25"
    check_binding(OmegaConf.to_container(cfg.data.get("reader") or OmegaConf.create(), resolve=True))
    for name, node in OmegaConf.to_container(cfg.data.media, resolve=True).items():
        if name != "store":
            assert build(node, f"data.media.{name}").modality == name


def check_binding(tree):
    for where, node in nodes(tree):
        target = locate(node["_target_"], where)
        given = {key for key in node if not key.startswith("_")}
        parameters = inspect.signature(target).parameters
        free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        assert free or given <= set(parameters), f"{where}: {node['_target_']} takes no {given - set(parameters)}"
        if not node.get("_partial_"):
            needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            assert needed - {"args", "kwargs"} <= given, f"{where}: {node['_target_']} lacks {needed - given}"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choices_fit_their_constructors(group, choice):
    config = composed(f"{group}={choice}")
    check_binding(config)
    check_types(config)


@pytest.mark.parametrize("choice", SAMPLINGS)
def test_samplings_fit_their_constructors(choice):
    node = OmegaConf.load(CONF / "sampling" / f"{choice}.yaml")
    around = {"frames": 48, "preset": "as_released", "data": {"layout": "ntu25"}, "sampler": node}
    sampler = OmegaConf.to_container(OmegaConf.create(around), resolve=True)["sampler"]
    check_binding(sampler)
    assert build(sampler, choice).frames == 48


@pytest.mark.parametrize("data", ["hdm05_views", "ntu60"])
def test_samplings_fit_methods_augmentations_and_experiments(data):
    places = ["sampling@method.sampler=frame50", "sampling@augment.sampler=uniform_index_frozen"]
    for others in ([], ["experiment=umurl_nw_ucla"], ["augment=none"]):
        config = composed(*places, f"data={data}", "frames=48", *others)
        check_binding(config)
        evaluation, training = (build(config[place]["sampler"]) for place in ("method", "augment"))
        assert (evaluation.layout, evaluation.frames) == (config["data"]["layout"], 48)
        assert training.frozen and training.frames == 48


def test_a_sampling_that_is_not_there(capsys):
    from skelact.cli import main

    assert main(["sampling@method.sampler=uniform_indx", "--cfg", "job"]) == 2
    assert "did you mean uniform_index?; sampling can be center_crop, crop_half" in capsys.readouterr().err
    for wrong in ("sampling", "sampling@data.sampler"):
        assert main([f"{wrong}=whole", "--cfg", "job"]) == 2
        told = capsys.readouterr().err
        assert (
            f"{wrong}: there is no such place" in told and "sampling@augment.sampler, sampling@method.sampler" in told
        )
    assert main(["--help"]) == 0
    assert "uniform_segments, video, whole" in capsys.readouterr().out


SWEEPS = [(g, p.stem) for g in ("launcher", "sweep") for p in sorted((CONF / g).glob("*.yaml"))]
PLUGINS = {"joblib": "joblib", "submitit": "submitit", "submitit_local": "submitit", "ray": "ray", "optuna": "optuna"}


@pytest.mark.parametrize(("group", "choice"), SWEEPS)
def test_sweeps_compose_where_their_plugin_is_installed(group, choice, capsys):
    from skelact.cli import main

    plugin = PLUGINS.get(choice)
    kind = "sweeper" if group == "sweep" else "launcher"
    code = main([f"{group}={choice}", "run_dir=runs/test", "--cfg", "hydra"])
    out, told = capsys.readouterr()
    if plugin and importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_{kind}") is None:
        assert code == 2 and f"pip install 'skelact[{plugin}]'" in told and len(told.splitlines()) == 1
        return
    composed = yaml.safe_load(out)
    assert code == 0 and composed["hydra"]["mode"] == "MULTIRUN"
    target = composed["hydra"]["sweeper" if group == "sweep" else "launcher"]["_target_"]
    assert "hydra_plugins" in target or "basic" in target


def test_an_extra_for_every_plugin():
    import tomllib

    from skelact.engine.messages import _EXTRAS

    project = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["project"]
    for extra in {*PLUGINS.values(), *_EXTRAS.values()}:
        assert any(p.startswith(f"hydra-{extra}-") for p in project["optional-dependencies"][extra])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_build(name):
    config = composed(f"experiment={name}")
    assert config["name"] == name
    check_binding(config)
    with torch.device("meta"):
        method = build(blank(config["method"]), "method")
    assert sum(p.numel() for p in method.parameters()) > 10_000
    read = config["data"].get("modalities") or ([1] if name.startswith(("maskclr", "motionbert", "stgcn")) else [1] * 3)
    assert len(method.streams) == len(read)


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.startswith("umurl_ntu")])
def test_published_recipes_are_whole(name):
    config = composed(f"experiment={name}")
    batch = 512 if name == "umurl_ntu60_xsub" else 1024
    method, optimizer = config["method"], config["method"]["optimizer"]
    assert config["data"]["batch_size"] == batch
    assert (optimizer["lr"], optimizer["weight_decay"]) == (5e-4, 1e-5)
    assert method["scheduler"]["milestones"] == [351] and config["trainer"]["max_epochs"] == 451
    assert (config["frames"], method["projector_width"], method["backbone"]["width"]) == (64, 4096, 1024)
    assert (method["consistency"], method["variance"], method["covariance"]) == (5.0, 5.0, 1.0)
    assert config["protocols"]["linear"]["recipe"] == "umurl"
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(method).parameters())
    assert parameters == 72_448_000  # counted on the reference code


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.startswith(("actionmae_ntu", "fusion_ntu"))])
def test_published_recipes_of_actionmae_are_whole(name):
    """Sizes: spec 3.11, without the unused heads of 1000 classes."""
    config = composed(f"experiment={name}", "preset=as_released")
    method, data, trainer = config["method"], config["data"], config["trainer"]
    assert (data["batch_size"], data["frames"], trainer["max_epochs"]) == (64, 16, 200)
    assert method["optimizer"]["lr"] == (2.5e-5 if name.startswith("actionmae") else 2e-4)
    assert (method["optimizer"]["weight_decay"], method["fusion"], method["label_smoothing"]) == (1e-4, "sum", 0.1)
    three = "ir" in data["modalities"]
    sizes = {("actionmae", False): 69_146_312, ("actionmae", True): 97_281_068}
    sizes |= {("fusion", False): 56_269_512, ("fusion", True): 84_404_268}
    with torch.device("meta"):
        built = build(blank({**method, "num_classes": 60}), "method")
    heads = 513_000 * len(built.streams)
    assert sum(p.numel() for p in built.parameters()) == sizes[name.partition("_")[0], three] - heads


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.startswith(("maskclr_ntu", "motionbert_ntu"))])
def test_published_recipes_of_maskclr_are_whole(name):
    config = composed(f"experiment={name}")
    method, optimizer, masked = config["method"], config["method"]["optimizer"], name.startswith("maskclr")
    assert (config["data"]["batch_size"], config["trainer"]["max_epochs"]) == ((4, 600) if masked else (32, 300))
    assert optimizer["_target_"] == "torch.optim.AdamW" and (optimizer["lr"], optimizer["weight_decay"]) == (1e-4, 0.01)
    assert method["head_lr"] == (1e-3 if masked else None) and method["scheduler"]["gamma"] == 0.99
    assert (config["frames"], config["data"]["layout"], method["backbone"]["dropout"]) == (243, "h36m17", 0.5)
    assert name.endswith(config["data"]["split"]) and not method["exclude_from_decay"]
    if masked:
        assert (method["msk_path_start_epoch"], method["ratio"], method["mask_temperature"]) == (300, 0.5, 0.75)
    with torch.device("meta"):
        built = build(method)
    parameters = sum(p.numel() for p in built.parameters())
    head = 17_954_876 if "ntu60" in name else 18_077_816
    assert (
        parameters == 42_466_317 - 1_539 + 512 + head
    )  # the release's, without its head of 3D poses, and a mask token


def test_the_published_one_shot_recipe_is_whole():
    config = composed("experiment=motionbert_oneshot_ntu120")
    data, method, optimizer = config["data"], config["method"], config["method"]["optimizer"]
    assert (data["split"], data["fit"], data["batch_size"], data["per_class"]) == ("oneshot", "train+val", 32, 2)
    assert (config["frames"], config["trainer"]["max_epochs"], data["layout"]) == (100, 50, "h36m17")
    assert (optimizer["lr"], method["head_lr"], optimizer["weight_decay"]) == (1e-4, 1e-3, 0.01)
    assert (method["temperature"], method["num_views"], method["scheduler"]["gamma"]) == (0.1, 1, 0.99)
    assert (method["backbone"]["dropout"], method["dropout"]) == (0.1, 0.0) and config["evaluate"] == ["oneshot"]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(method).parameters())
    assert parameters == 42_466_317 - 1_539 + 512 + 17_827_840


@pytest.mark.parametrize("name", ["actionmae", "multimodal"])
def test_streams_of_skeletons_are_modalities(name):
    config = composed(f"method={name}", "data=utd_mhad", "backbone=stgcn", "preset=as_released")
    with torch.device("meta"):
        method = build(config["method"])
    assert method.streams == ("joint", "bone", "motion") and set(method.groups.values()) == {"skeleton"}
    encoders = list(method.encoders.values())
    assert [encoder.streams for encoder in encoders] == [("joint",), ("bone",), ("motion",)]
    assert len({id(encoder.backbone) for encoder in encoders}) == 3 and not encoders[0].use_mask
    assert (config["method"]["optimizer"]["lr"], config["method"]["num_heads"]) == (
        2.5e-5 if name == "actionmae" else 2e-4,
        8,
    )


def test_own_configs_are_found(tmp_path, monkeypatch, capsys):
    from skelact.cli import main

    (tmp_path / "here/conf/experiment").mkdir(parents=True)
    (tmp_path / "there/experiment").mkdir(parents=True)
    text = "# @package _global_\nname: {}\nframes: {}\n"
    (tmp_path / "here/conf/experiment/mine.yaml").write_text(text.format("mine", 12))
    (tmp_path / "there/experiment/yours.yaml").write_text(text.format("yours", 13))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SKELACT_CONF", str(tmp_path / "there"))
    for name, frames in (("mine", 12), ("yours", 13)):
        assert main([f"experiment={name}", "--cfg", "job"]) == 0
        assert f"frames: {frames}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "mine" in listed and "umurl_hdm05" in listed
