"""The log of a run on a disk that fills up and is emptied."""

import csv
import resource

import pytest

from skelact.callbacks.metrics_csv import MetricsCSV


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("news", [{}, {"val": 1.5}])
def test_rows_wait_until_there_is_room(tmp_path, news):
    """Also where a new column wants the whole file anew: what is on disk stays."""
    before, log = resource.getrlimit(resource.RLIMIT_FSIZE)[0], MetricsCSV(tmp_path / "metrics.csv")
    for step in range(4):
        log.log_metrics({"loss": step / 8}, step)
    size = log.path.stat().st_size
    try:
        limit(size + 3)
        with pytest.warns(UserWarning, match="rows are kept until there is room") as told:
            for step in range(4, 8):
                log.log_metrics({"loss": step / 8, **news}, step)
        assert len(told) == 1 and len(list(csv.DictReader(log.path.open()))) >= 4
    finally:
        limit(before)
    log.finalize("success")
    rows = list(csv.DictReader(log.path.open()))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(step, step / 8) for step in range(8)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]
