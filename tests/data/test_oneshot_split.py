"""The split of new classes, of any set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.datamodules import SkeletonDataModule
from skelact.data.readers import ntu_protocols
from skelact.data.splits import SplitError, choose_exemplars, oneshot_rule
from skelact.data.store import Store
from skelact.data.writer import StoreWriter

from .conftest import make_card

NAMES = [f"class {label}" for label in range(9)]


def table(labels, **columns):
    names = np.array([f"clip{k:03d}" for k in range(len(labels))])
    return {"label": np.array(labels), "name": names, **{key: np.array(x) for key, x in columns.items()}}


@pytest.fixture
def many(tmp_path) -> Store:
    """Nine classes, three subjects, two clips of each."""
    with StoreWriter(tmp_path / "many", make_card(class_names=NAMES)) as writer:
        for label in range(9):
            for subject in (1, 2, 3):
                for take in (0, 1):
                    frames = np.ones((3, 1, 20, 3), np.float32)
                    writer.add(f"a{label}s{subject}t{take}", frames, label, subject=subject)
    return Store(tmp_path / "many")


def test_every_third_class_is_new_where_nothing_is_said(many):
    data = SkeletonDataModule(str(many.path), "oneshot")
    assert {part: sorted(set(data.labels(part).tolist())) for part in ("train", "val", "test", "exemplars")} == {
        "train": [1, 4, 5, 8], "val": [2, 7], "test": [0, 3, 6], "exemplars": [0, 3, 6],
    }  # fmt: skip
    assert data.clip_names("exemplars") == ["a0s1t0", "a3s1t0", "a6s1t0"]
    rows = np.concatenate([data.rows(part) for part in ("train+val", "test", "exemplars")])
    assert sorted(rows.tolist()) == list(range(54))


@pytest.mark.parametrize("novel", [["class 2", 5], ["2", "class 5"], [5, 2, 2]])
def test_new_classes_by_name_or_label(many, novel):
    data = SkeletonDataModule(str(many.path), "oneshot", novel=novel)
    assert set(data.labels("test")) == {2, 5} and set(data.labels("val")) == {1, 6}
    assert set(data.labels("train")) == {0, 3, 4, 7, 8}


def test_the_sets_own_rule_counts_unless_classes_are_given(tmp_path):
    rule = {
        "factor": "label", "train": [0, 2], "test": [1, 3],
        "exemplars": {"factor": "name", "values": ["clip1", "clip3"]},
    }  # fmt: skip
    with StoreWriter(tmp_path / "s", make_card(class_names=NAMES[:4], splits={"oneshot": rule})) as writer:
        for k in range(12):
            writer.add(f"clip{k}", np.ones((3, 1, 20, 3), np.float32), k % 4)
    own = SkeletonDataModule(str(tmp_path / "s"), "oneshot")
    assert set(own.labels("test")) == {1, 3} and own.clip_names("exemplars") == ["clip1", "clip3"]
    given = SkeletonDataModule(str(tmp_path / "s"), "oneshot", novel=2)
    assert set(given.labels("test")) == {0, 2} and set(given.labels("train")) == {1, 3}


def test_six_gives_the_new_classes_of_ntu():
    rule = oneshot_rule(table(np.arange(120).repeat(2)), ntu_protocols.CLASSES, 6)
    assert [label + 1 for label in rule.test] == list(ntu_protocols.NOVEL) and len(rule.train) == 100


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-1, 8), min_size=6, max_size=60), st.integers(2, 4))
def test_sides_share_no_class(labels, step):
    columns = table(labels, subject=np.arange(len(labels)) % 3)
    there = set(labels) - {-1}
    if min(sum(x % step == 0 for x in there), sum(x % step > 0 for x in there)) < 2:
        with pytest.raises(SplitError, match="two or more"):
            oneshot_rule(columns, NAMES, step)
        return
    parts = oneshot_rule(columns, NAMES, step).parts(columns)
    classes = {part: set(columns["label"][rows].tolist()) for part, rows in parts.items()}
    assert classes["exemplars"] == {label for label in there if label % step == 0}
    assert len(parts["exemplars"]) == len(classes["exemplars"])
    assert not classes["train"] & (classes["val"] | classes["exemplars"] | classes["test"]) and not (
        classes["val"] & classes["exemplars"]
    )
    assert len(parts["train+val"]) + len(parts["test"]) + len(parts["exemplars"]) == sum(x >= 0 for x in labels)


def test_exemplars_are_filmed_alike():
    """Camera 2 and subject 1 have all three classes; 1 and 1, although lower, lack one."""
    columns = table(
        [0, 0, 1, 1, 2, 0, 2, 1],
        subject=[1, 1, 1, 2, 1, 1, 1, 1],
        camera=[1, 2, 1, 2, 2, 2, 2, 2],
    )
    assert choose_exemplars(columns, np.arange(8)).tolist() == [1, 7, 4]
    assert choose_exemplars(columns, np.array([7, 6, 5])).tolist() == [5, 7, 6]
    assert choose_exemplars(table([1, 0, 1, 0]), np.arange(4)).tolist() == [1, 0]


def test_a_class_that_the_chosen_subject_lacks_gives_its_first_clip():
    columns = table([0, 1, 1, 2, 2], subject=["b", "b", "a", "a", "a"])
    assert choose_exemplars(columns, np.arange(5)).tolist() == [0, 2, 3]
    assert choose_exemplars(columns, np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("split", "novel", "reason"),
    [
        ("oneshot", 1, "every class would be new"),
        ("oneshot", ["class 4", "wave"], "no class 'wave'; the classes are class 0"),
        ("oneshot", ["class 4"], "1 new classes and 8 others"),
        ("xsub", 3, r"data\.novel=3 chooses the new classes of data\.split=oneshot, not of 'xsub'"),
    ],
)
def test_classes_that_cannot_be_new(many, split, novel, reason):
    with pytest.raises(SplitError, match=reason):
        SkeletonDataModule(str(many.path), split, novel=novel).setup()
