"""Where Hydra looks for configs: the user's own places first, then the library's."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

import skelact.conf


class SkelactSearchPath(SearchPathPlugin):
    """Prepends `./conf`, the folders in `$SKELACT_CONF`, and the entry points `skelact.conf` of installed packages.

    An entry point names a package of YAML files: `mine = "my_project.conf"`.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it composes."""
        own = Path(skelact.conf.__path__[0]).resolve()
        for point in entry_points(group="skelact.conf"):
            search_path.prepend(provider=f"skelact.conf:{point.name}", path=f"pkg://{point.value}")
        folders = [Path(part) for part in os.environ.get("SKELACT_CONF", "").split(os.pathsep) if part]
        for folder in (*reversed(folders), Path("conf")):
            if folder.is_dir() and folder.resolve() != own:
                search_path.prepend(provider="skelact-user", path=f"file://{folder.resolve()}")


def register() -> None:
    """Tell Hydra about the search path; may be called any number of times."""
    Plugins.instance().register(SkelactSearchPath)
