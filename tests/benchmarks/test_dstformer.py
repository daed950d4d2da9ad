import sys

import pytest

from skelact.benchmarks.dstformer import measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.mark.slow
def test_both_forms_give_the_same_features_in_less_time_and_memory():
    numbers = measure(seconds=0.0, frames=20, long=60, width=32, depth=1, num_heads=4)
    assert numbers["difference of features"] < 1e-5 < numbers["largest entry of a feature"]
    ratio = numbers["T = 20: straightforward pass, ms"] / numbers["T = 20: pass, ms"]
    assert numbers["T = 20: times as fast"] == pytest.approx(ratio)
    assert numbers["T = 60: times less memory"] > 1
