"""Every method's training step in one table: `skelact benchmark methods`.

Each is measured in a process of its own, by its recipe: `experiment=NAME`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skelact.benchmarks.steps import PARTS, Numbers
from skelact.errors import SkelactError
from skelact.results import Record, read_records

SIZES = {
    "small": {
        "umurl": ("umurl_hdm05",),
        "skeletonclr": ("skeletonclr_hdm05",),
        "crosclr": ("crosclr_hdm05",),
        "aimclr": ("aimclr_hdm05",),
        "skeletonbyol": ("cmal_hdm05", "method=skeletonbyol"),
        "cmal": ("cmal_hdm05",),
        "caca": ("caca_hdm05",),
        "supervised, stgcn": ("stgcn_utd_mhad_2d",),
        "supervised, dstformer": ("motionbert_hdm05_2d",),
        "maskclr": ("maskclr_hdm05_2d",),
        "supcon": ("motionbert_oneshot_utd_mhad_2d",),
        "multimodal": ("actionmae_hdm05_rendered", "method=multimodal"),
        "actionmae": ("actionmae_hdm05_rendered",),
    },
    "published": {
        "umurl": ("umurl_ntu60_xsub",),
        "skeletonclr": ("skeletonclr_ntu60_xsub",),
        "crosclr": ("crosclr_ntu60_xsub",),
        "aimclr": ("aimclr_ntu60_xsub",),
        "skeletonbyol": ("cmal_ntu60_xsub", "method=skeletonbyol"),
        "cmal": ("cmal_ntu60_xsub",),
        "caca": ("caca_ntu60_xsub",),
        "supervised, dstformer": ("motionbert_ntu60_xsub",),
        "maskclr": ("maskclr_ntu60_xsub",),
        "supcon": ("motionbert_oneshot_ntu120",),
        "multimodal": ("fusion_ntu60_xsub",),
        "actionmae": ("actionmae_ntu60_xsub",),
    },
}
"""Recipe and overrides of each row: `small` for two CPU cores, `published` for an accelerator."""

COLUMNS = {
    "batch": "batch",
    "clips/s": "clips/s",
    "step, ms": "step, ms",
    **{f"  {name}, ms": name for name in PARTS},
    "given its views: times as fast": "times as fast",
    "achieved GFLOP/s": "GFLOP/s",
    "share of the peak, %": "% of peak",
    "share of the peak, as computed, %": "% computed",
    "peak memory of a step, MB": "memory, MB",
    "parameters, millions": "parameters, M",
    "forward GFLOPs a clip": "GFLOPs a clip",
}
"""Which of a method's numbers the table shows, and under what name."""


def measure(sizes: str, only: Sequence[str], overrides: Sequence[str], seconds: float) -> list[Record]:
    """One record for each method.

    Args:
        sizes: `small` or `published`.
        only: rows; empty: all.
        overrides: further overrides for every recipe, such as `data.batch_size=8`.
        seconds: measuring time of each part.

    Raises:
        SkelactError: no such size or row, or a recipe that cannot be measured.
    """
    if sizes not in SIZES:
        raise SkelactError(f"benchmark methods: sizes={sizes} is none of {', '.join(SIZES)}")
    unknown = [name for name in only if name not in SIZES[sizes]]
    if unknown:
        raise SkelactError(f"benchmark methods: only={unknown[0]!r} is none of {', '.join(map(repr, SIZES[sizes]))}")
    records = []
    for name, (experiment, *own) in SIZES[sizes].items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "results.json"
            asked = [f"experiment={experiment}", *own, *overrides, f"seconds={seconds}", f"output={file}"]
            print(f"{name}: skelact benchmark {' '.join(asked[:-1])}", file=sys.stderr, flush=True)
            start = "import sys; from skelact.cli import main; sys.exit(main(sys.argv[1:]))"
            done = subprocess.run([sys.executable, "-c", start, "benchmark", *asked], capture_output=True, text=True)
            if done.returncode:
                reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise SkelactError(f"skelact benchmark {' '.join(asked[:-1])}: {reason[0].removeprefix('skelact: ')}")
            record = read_records(file)[0]
        record.method = name
        records.append(record)
    return records


def as_record(numbers: Numbers, config: Mapping[str, Any]) -> Record:
    """A method's numbers as an entry of results.json: numbers as metrics, words beside them."""
    data = config["data"]
    return Record(
        protocol="benchmark",
        method=str(numbers["method"]).lower(),
        data=str(data["name"]),
        split=str(data.get("split") or ""),
        seed=int(config["seed"]),
        metrics={_key(k): float(v) for k, v in numbers.items() if isinstance(v, (int, float))},
        parameters=round(1e6 * numbers["parameters, millions"]),
        gflops=numbers.get("forward GFLOPs a clip"),
        samples_per_s=numbers["clips/s"],
        device=numbers["device"],
        extra={_key(k): v for k, v in numbers.items() if isinstance(v, str) and k not in ("method", "device")},
    )


def _key(name: str) -> str:
    """A number's name as results.json has it: `achieved GFLOP/s` becomes `achieved_gflop_per_s`."""
    words = name.replace("/s", " per s").replace("%", "percent").lower()
    return "_".join(re.findall(r"[a-z0-9]+", words))


def table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, a row for each method; columns that no method has are left out."""
    titles = {_key(name): title for name, title in COLUMNS.items()}
    shown = {key: title for key, title in titles.items() if any(key in r.metrics for r in records)}
    rows = [[r.method, *(_cell(r.metrics.get(key)) for key in shown)] for r in records]
    return ["method", *shown.values()], rows


def _cell(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
