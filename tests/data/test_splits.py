from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.data.readers import nw_ucla, utd_mhad
from skelact.data.splits import SplitError, SplitRule, label_subset, part_rows, resolve
from skelact.errors import SkelactError


def test_validation_is_cut_from_the_training_side(store):
    parts = resolve(store, "xsub")
    subject = store.columns["subject"]
    assert set(subject[parts["train"]]) == {1, 2} and set(subject[parts["val"]]) == {3}
    assert set(subject[parts["test"]]) == {4}
    assert sorted([*parts["train"], *parts["val"]]) == parts["train+val"].tolist()
    assert sum(len(parts[part]) for part in ("train", "val", "test")) == len(store)


def test_unknown_split_lists_those_there_are(store):
    with pytest.raises(SplitError, match=r"no split 'xset'.*xsub"):
        resolve(store, "xset")


def test_unknown_and_empty_parts_are_named(store):
    parts = resolve(store, "xsub")
    with pytest.raises(SplitError, match="unknown part 'tset'"):
        part_rows(parts, "tset", "xsub", "toy")
    parts["val"] = np.array([], np.int64)
    with pytest.raises(SplitError, match="part 'val' of split 'xsub' of toy has no clips"):
        part_rows(parts, "val", "xsub", "toy")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"factor": "setup", "train": [1]}, "column 'setup'"),
        ({"factor": "subject", "train": ["bd"]}, "whole numbers"),
        ({"factor": "subject", "train": [1], "test": [1, 2]}, "both sides"),
        ({"train": [1]}, "split rule must be"),
    ],
)
def test_rules_that_do_not_fit(store, rule, reason):
    with pytest.raises(SplitError, match=reason):
        SplitRule.from_dict(rule).parts(store.columns)


def test_rule_round_trip_and_test_by_default_the_rest():
    rule = {"factor": "s", "train": ["a"], "val": {"factor": "s", "values": ["a"]}}
    assert SplitRule.from_dict(rule).to_dict() == rule
    parts = SplitRule.from_dict({"factor": "s", "train": ["a"]}).parts({"s": np.array(["a", "b", "c"])})
    assert parts["test"].tolist() == [1, 2]


def test_nw_ucla_and_utd_rules_give_the_published_sides():
    """Counts per (subject, camera) are not needed: the rules name whole cameras and subjects."""
    view = SplitRule.from_dict(nw_ucla.SPLITS["xview"])
    columns = {"camera": np.repeat([1, 2, 3], [516, 504, 464]), "subject": np.arange(1484) % 10 + 1}
    parts = view.parts(columns)
    assert len(parts["train+val"]) == 1020 and len(parts["test"]) == 464
    assert set(columns["subject"][parts["val"]]) == {9, 10}
    sub = SplitRule.from_dict(utd_mhad.SPLITS["xsub"]).parts({"subject": np.repeat(np.arange(1, 9), 10)})
    assert len(sub["train"]) == 30 and len(sub["val"]) == 10 and len(sub["test"]) == 40


_names = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), min_size=1, max_size=60, unique=True)


@settings(deadline=None)
@given(names=_names, seed=st.integers(0, 2**32 - 1), draw=st.integers(0, 3), data=st.data())
def test_label_lists_do_not_depend_on_order(names, seed, draw, data):
    labels = np.array([sum(map(ord, name)) % 4 for name in names])
    options = data.draw(
        st.one_of(
            st.fixed_dictionaries({"fraction": st.floats(0.01, 1.0)}),
            st.fixed_dictionaries({"per_class": st.integers(1, 5)}),
        )
    )
    chosen = {names[k] for k in label_subset(names, labels, draw=draw, **options)}
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [names[k] for k in order]
    assert {shuffled[k] for k in label_subset(shuffled, labels[order], draw=draw, **options)} == chosen
    assert {sum(map(ord, name)) % 4 for name in chosen} == set(labels.tolist())  # every class keeps one


def test_label_lists_are_nested_frozen_and_drawn():
    names = [f"clip{k}" for k in range(1000)]
    labels = np.arange(1000) % 10
    one, ten = (set(label_subset(names, labels, fraction=f).tolist()) for f in (0.01, 0.1))
    assert len(one) == 10 and len(ten) == 100 and one < ten
    # frozen: these lists belong to published numbers
    assert label_subset(names, labels, per_class=1, draw=0).tolist() == FROZEN
    assert label_subset(names, labels, per_class=1, draw=1).tolist() != FROZEN
    labels[:500] = -1
    assert label_subset(names, labels, fraction=0.5).min() >= 500


FROZEN = [48, 109, 131, 204, 546, 602, 657, 840, 845, 983]


@pytest.mark.parametrize("options", [{"fraction": 0.1, "per_class": 1}, {"fraction": 0.0}, {"per_class": 0}])
def test_label_options_are_checked(options):
    with pytest.raises(SkelactError):
        label_subset(["a"], [0], **options)
