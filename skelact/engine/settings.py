"""From the config that Hydra composed to the frozen, plain one that a run executes and writes down."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skelact.engine.build import PREPARE_ONLY
from skelact.errors import SkelactError

INHERITED = ("backbone", "augment", "method", "frames", "preset")
"""What a checkpoint decides; data too, unless the command line says otherwise."""


class ConfigError(SkelactError):
    """A combination of overrides that cannot be run."""


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys that command line overrides set, without `+`, `~`, `++` and values."""
    return [text.partition("=")[0].lstrip("+~").strip() for text in overrides]


def freeze(cfg: DictConfig, overrides: Sequence[str] = (), choices: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything resolved, as plain containers.

    Args:
        cfg: what Hydra composed, without its own `hydra` node.
        overrides: the command line, to know what was asked for and what is only a default.
        choices: option chosen in each group.

    Returns:
        The config; `selected` is the name of the protocol that runs first, `protocol` its options.

    Raises:
        ConfigError: overrides that contradict each other or a checkpoint, a value that is missing.
    """
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    choices = dict(choices or {})
    for key in PREPARE_ONLY:
        cfg.data.pop(key, None)
    _select_protocol(cfg, overrides, choices)
    with _readable():
        if cfg.get("checkpoint"):
            inherit(cfg, overrides)
        complete_from_card(cfg)
        keep_encoders(cfg.method)
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    frozen: dict[str, Any] = {str(key): value for key, value in container.items()}
    _check(frozen)
    from skelact.engine.classifier import prepare

    return prepare(frozen, keys_of(overrides))


@contextlib.contextmanager
def _readable() -> Any:
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {str(error).splitlines()[0]}") from error


def _select_protocol(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> None:
    """One set of options per protocol: `protocol.x=1` is short for `protocols.<the chosen one>.x=1`."""
    name = str(choices.get("protocol", "pretrain"))
    cfg.selected = name
    options = cfg.protocols.get(name)
    if options is None:
        return
    for key in keys_of(overrides):
        if key.startswith("protocol."):
            OmegaConf.update(options, key.removeprefix("protocol."), OmegaConf.select(cfg, key), force_add=True)
    cfg.protocol = options


def inherit(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Take method, backbone, augmentation, frames and, unless given, data from the checkpoint."""
    from skelact.engine.checkpoint import KEY, read

    keys = keys_of(overrides)
    for key in keys:
        group, _, package = key.partition("@")  # sampling@method.sampler is a choice for the method
        head = (package or group).partition(".")[0]
        if head in INHERITED:
            raise ConfigError(
                f"{key}=... cannot be combined with checkpoint={cfg.checkpoint}: the checkpoint decides its {head}; "
                f"leave one of them out"
            )
    card = read(str(cfg.checkpoint))[KEY]
    given: dict[str, Any] = card["config"]
    for key in INHERITED:
        cfg[key] = given.get(key)
    touched = [key for key in keys if key.startswith("data.")]
    if "data" not in keys and "experiment" not in keys:
        values = {key: OmegaConf.select(cfg, key) for key in touched}
        cfg.data = copy.deepcopy(given["data"])
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, force_add=True)
    complete_from_card(cfg)
    _check_layout(cfg, card, "data.layout" in keys)
    cfg.source = {key: given["data"].get(key) for key in ("name", "split")} | {"fingerprint": card.get("fingerprint")}


def keep_encoders(method: DictConfig) -> None:
    """Leave of the encoders, one for each modality there might be, those of the modalities that are read.

    Raises:
        ConfigError: a modality has no encoder.
    """
    if "encoders" not in method:
        return
    names = [str(name) for name in method.modalities]
    for name in names:
        if name not in method.encoders:
            known = ", ".join(str(key) for key in method.encoders)
            raise ConfigError(
                f"method.modalities={names}: there is no encoder for {name} (there are {known}); "
                f"give method.encoders.{name}"
            )
    for name in [key for key in method.encoders if key not in names]:
        method.encoders.pop(name)


def _check_layout(cfg: DictConfig, card: Mapping[str, Any], given: bool) -> None:
    """Have the joints of other data converted to the checkpoint's layout, where there is a conversion.

    Raises:
        ConfigError: there is none, or the command line wants yet another layout.
    """
    from skelact.skeleton.convert import list_conversions
    from skelact.skeleton.layouts import Layout, get_layout

    found = None if OmegaConf.is_missing(cfg.data, "layout") else cfg.data.get("layout")
    if found is None or card["layout"] is None:
        return
    trained = Layout.from_dict(card["layout"])
    named: Any = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    layout = get_layout(named)
    if not given and (layout.name, trained.name) in list_conversions():
        cfg.data.layout = trained.name
    elif layout.joints != trained.joints:
        advice = f"have them converted with data.layout={trained.name}" if given else "there is no conversion for them"
        raise ConfigError(
            f"checkpoint {cfg.checkpoint} was trained on layout {trained.name} ({trained.num_joints} joints), the data "
            f"have {layout.name} ({layout.num_joints} joints); {advice}"
        )


def complete_from_card(cfg: DictConfig) -> None:
    """Fill what the data config leaves open (layout, persons, channels, classes) from the store's card.

    Configs of known datasets say these numbers, so that they compose without the data; a user's own store need not.

    Raises:
        SkelactError: the layout is open, and there is no store that could say it.
    """
    data = cfg.data
    keys = ("layout", "persons", "channels", "num_classes")
    wanted = [key for key in keys if OmegaConf.is_missing(data, key) or (key in data and data[key] is None)]
    store = data.get("store")
    if not wanted or store is None:
        return
    if not (Path(str(store)).expanduser() / "card.json").is_file():
        if "layout" in wanted:  # only a user's own data leave that open: without their store there is nothing to build
            from skelact.data.embedded import open_store

            open_store(str(store), data.get("name"), pipeline=data.get("pipeline"))
        return
    from skelact.data.loading import given_channels
    from skelact.data.store import Store

    card = Store(Path(str(store)).expanduser()).card
    facts = {
        "layout": card["layout"],
        "persons": card["persons"],
        "channels": len(given_channels(card, str(data.get("scores")))),
        "num_classes": len(card["class_names"]),
    }
    for key in wanted:
        data[key] = facts[key]


def _check(frozen: Mapping[str, Any]) -> None:
    known = sorted(name for name, node in frozen["protocols"].items() if node)
    asked = frozen.get("evaluate") or []
    asked = [asked] if isinstance(asked, str) else asked
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"evaluate: there is no protocol {name!r}; there are {', '.join(known)}"
                f" (add your own with +protocol@protocols.{name}={name})"
            )
    preset = str(frozen.get("preset"))
    # a method with several releases names them: as_released_c1, as_released_c2; it says itself which it knows
    if preset != "corrected" and not preset.startswith("as_released"):
        raise ConfigError(f"preset={preset} is neither corrected nor as_released")


def write_yaml(path: Path, config: Mapping[str, Any]) -> None:
    """Write a frozen config for people and for `resume`."""
    from skelact.engine.files import replace_text

    replace_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a frozen config.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: not a run directory (it has no {path.name})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict) or "method" not in found:
        raise ConfigError(f"{path}: is not the config of a run")
    return found
