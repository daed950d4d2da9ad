import pytest

from skelact.benchmarks.media import measure


def test_a_store_is_read_faster_than_its_original_is_decoded():
    numbers = measure(seconds=0.2, frames=24, height=540, width=960, kept=4, size=90)
    assert numbers["avi_beside_jpeg_store"] == pytest.approx(numbers["original_avi_ms"] / numbers["store_jpeg_ms"])
    assert min(numbers.values()) > 0 and numbers["jpeg_beside_raw_store"] > 1 and numbers["avi_beside_raw_store"] > 1
