from __future__ import annotations

import io

from rich.console import Console

from skelact.data.info import describe


def test_describe_tells_counts_and_fingerprint(masked_store):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(describe(masked_store))
    text = console.export_text()
    assert masked_store.fingerprint in text and "kinect20" in text and "% of joints" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│") and len(line.split()) > 4}
    assert "12 │   6 │    6 │" in lines["xsub"]  # train, val, test
    assert "24" in text
