import pytest

from skelact.benchmarks.stgcn import measure


def test_both_forms_give_the_same_features_and_their_ratio_is_of_their_times():
    numbers = measure(seconds=0.0, clips_in_batch=2, frames=12, hidden=4, num_features=8)
    for title in ("1 stream: ", "3 streams: "):
        assert numbers[f"{title}relative difference of features"] < 1e-4
        ratio = numbers[f"{title}straightforward pass, ms"] / numbers[f"{title}pass, ms"]
        assert numbers[f"{title}times as fast"] == pytest.approx(ratio)
