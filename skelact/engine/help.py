"""What `--help` lists: for each command the groups it reads, without the files that other choices are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_READ = {
    "prepare": ("data",),
    "info": ("data",),
    "benchmark": ("augment", "backbone", "data", "experiment", "method", "sampling", "trainer"),
}


def list_groups_of(command: str) -> None:
    """Make Hydra list the groups of `command` in place of every folder of configs; for a process that shows help."""
    from hydra._internal.hydra import Hydra  # it offers no public way; the version is pinned

    def format_config_groups(self: Any, predicate: Callable[[str], bool], compact: bool = True) -> str:
        lines = []
        for group in sorted(self.list_all_config_groups()):
            if not predicate(group) or (not group.startswith("hydra") and group not in _READ.get(command, (group,))):
                continue
            options = [name for name in sorted(self.config_loader.get_group_options(group)) if name[0] != "_"]
            lines.append(f"{group}: {', '.join(options)}" if compact else "\n  ".join([f"{group}:", *options]))
        return "\n".join(lines) + "\n"

    Hydra.format_config_groups = format_config_groups  # type: ignore[method-assign]
