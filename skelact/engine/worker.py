"""One of several processes: `python -m skelact.engine.worker config.json` (started by skelact.engine.launch)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from skelact.engine.files import replace_text
from skelact.errors import SkelactError


def main(path: str) -> int:
    """Execute the frozen config as the rank that the environment names."""
    from skelact.engine.run import execute

    file = Path(path)
    config = json.loads(file.read_text(encoding="utf-8"))
    first = os.environ.get("RANK", "0") == "0"
    try:
        execute(config)
    except SkelactError as error:
        if first:
            replace_text(file.parent / "failure.txt", str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
