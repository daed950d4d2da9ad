from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from skelact.data.info import describe
from skelact.data.published import compare

from .conftest import write_store


def _text(*renderables):
    console = Console(width=160, record=True, file=io.StringIO())
    for renderable in renderables:
        console.print(renderable)
    return console.export_text()


def _rows(text):
    """Cells of the tables' lines by their first cell."""
    lines = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_describe_tells_counts_and_fingerprint(masked_store):
    text = _text(describe(masked_store, more=["tables of another modality"]))
    assert masked_store.fingerprint in text and "kinect20" in text and "tables of another modality" in text
    rows = _rows(text)
    assert rows["xsub"] == ["12", "6", "6", "18", "subject"]  # train, val, test, train+val
    assert rows["1 b"] == ["8", "4 / 2 / 2"]
    frames = masked_store.length[masked_store.columns["subject"] == 2].sum()
    assert rows["2"] == ["6", str(frames)]
    assert rows["lengths"][0].startswith("1 / ") and f"mean {masked_store.length.mean():.1f}" in rows["lengths"][0]
    observed = 100 * (1 - masked_store.mask.sum() / masked_store.mask[masked_store.mask.any(2)].size)
    assert f"{observed:.2f} % of joints" in rows["absent"][0]


def test_published_counts_are_compared(tmp_path):
    published = {
        "clips": 24,
        "splits": {"xsub": {"train+val": 18, "test": 7}, "xview": {"test": 3}},
        "source": "Somebody et al., 2016",
    }
    store = write_store(tmp_path / "s", published=published, pipeline="energy")
    rows = _rows(text := _text(describe(store)))
    assert rows["clips"] == ["24", "24", "OK"] and rows["xsub train+val"] == ["18", "18", "OK"]
    assert rows["xsub test"] == ["6", "7", "-1"] and rows["xview test"] == ["0", "3", "-3"]
    assert "Somebody et al., 2016" in text and rows["pipeline"][0].startswith("energy")
    assert compare({**store.card, "published": None}, store.columns) == []


def test_names_from_files_are_no_markup(tmp_path):
    store = write_store(tmp_path / "s", class_names=["[red]a", "b[/]", "c"], source="[link=x]y")
    text = _text(describe(store))
    assert "0 [red]a" in text and "1 b[/]" in text and "[link=x]y" in text


def test_stores_of_earlier_versions_are_measured(masked_store):
    numbers = masked_store.card["statistics"]
    want = _text(describe(masked_store))
    for key in ("absent_persons", "absent_joints"):
        del numbers[key]
    assert _text(describe(masked_store)) == want
    assert np.isfinite(numbers["mean"]).all()
