"""One clear line for what went wrong, instead of a traceback, where the user can mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from skelact.errors import SkelactError


def explain(error: BaseException, arguments: Sequence[str] = (), config: str = "config") -> tuple[str, int] | None:
    """The line to print and the exit code; None for errors that are not the user's to mend.

    Args:
        error: what was raised.
        arguments: the command line.
        config: the config that the command composes, where a key may be looked for that was meant.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    chain = _chain(error)
    for link in chain:
        if isinstance(link, SkelactError):
            return _one_line(str(link)), 2
    for link in chain:
        if isinstance(link, HydraException):
            return _hydra_line(link, config), 2
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return _one_line(str(link).splitlines()[0]), 2
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            named = f"{link.filename}: " if link.filename else ""
            return f"{named}{link.strerror} (what was complete before is kept)", 1
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; try a smaller data.batch_size or trainer.precision=bf16-mixed", 1
    return None


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Choices of Hydra's own groups that come with a plugin, and the extra of ours that installs it.
_EXTRAS = {
    "launcher/joblib": "joblib",
    "launcher/submitit_slurm": "submitit",
    "launcher/submitit_local": "submitit",
    "launcher/ray": "ray",
    "sweeper/optuna": "optuna",
}


def _hydra_line(error: BaseException, config: str) -> str:
    """Hydra's messages, with the nearest thing that does exist."""
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n?)+)", text):
        wanted, group, listed = found.groups()
        if extra := _EXTRAS.get(wanted.removeprefix("hydra/")):
            return f"{wanted} is a plugin of Hydra that is not installed: pip install 'skelact[{extra}]'"
        options = [option for option in listed.split() if not option.startswith("_")]
        name = wanted.rpartition("/")[2]
        return f"{group}={name}: there is no such choice{_nearest(name, options)}; {group} can be {', '.join(options)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1)
        if places := re.search(r"Did you mean to override (?:one of )?(\S.*)\?", text):
            return f"{key}: there is no such place for a choice; there is {places.group(1)}"
        near = _nearest(key, known_keys(config))
        return f"{key}: there is no such key{near} (skelact --cfg job lists them all; +{key}=... adds it)"
    if found := re.search(r"In '([^']+)': Could not find '([^']+)'", text):
        return f"config {found.group(1)}: could not find {found.group(2)}"
    if override := getattr(error, "override", None):
        return _one_line(f"{override}: cannot be understood ({text}); quote lists and special characters: 'key=[1,2]'")
    lines = [line for line in text.splitlines() if line.strip() and "See https://" not in line]
    return _one_line(" ".join(lines[:3]))


def _nearest(word: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""


def known_keys(config: str = "config") -> list[str]:
    """Every key of a command's default config, for suggestions."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        own = [prefix] if prefix else []
        return own + [k for key, value in node.items() for k in walk(value, f"{prefix}.{key}".lstrip("."))]

    try:
        GlobalHydra.instance().clear()
        with initialize_config_module("skelact.conf", version_base="1.3"):
            cfg = compose(config)
        assert isinstance(cfg, DictConfig)
        return walk(OmegaConf.to_container(cfg, resolve=False), "")
    except Exception:  # a suggestion is a courtesy: failing to make one must not hide the real error
        return []


def unknown_command(word: str, commands: Sequence[str]) -> str:
    """For a bare word that is neither a command nor an override."""
    known = ", ".join(commands)
    return f"{word!r} is neither a command ({known}) nor KEY=VALUE{_nearest(word, commands)} (see skelact --help)"
