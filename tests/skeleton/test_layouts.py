import pytest
import torch
import yaml

from skelact.errors import SkelactError
from skelact.skeleton import Layout, LayoutError, get_layout, list_layouts

PARTS = {"torso", "left_arm", "right_arm", "left_leg", "right_leg"}


def stick(**changes):
    table = {
        "name": "stick",
        "joints": ["hip", "chest", "left_hand", "right_hand"],
        "bones": [["chest", "hip"], ["left_hand", "chest"], ["right_hand", "chest"]],
        "mirror": [["left_hand", "right_hand"]],
        "parts": {"torso": ["hip", "chest"], "left_arm": ["left_hand"]},
        "center": "hip",
        "shoulders": ["left_hand", "right_hand"],
    }
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


@pytest.mark.parametrize("name", list_layouts())
class TestBuiltIn:
    def test_tree_reaches_every_joint_from_the_root(self, name):
        layout = get_layout(name)
        assert len(layout.bones) == layout.num_joints - 1
        reached = set()
        for joint in layout.outward:
            assert joint == layout.root or layout.parents[joint] in reached
            reached.add(joint)
        assert len(reached) == layout.num_joints

    def test_parts_cover_every_joint_once(self, name):
        layout = get_layout(name)
        assert set(layout.parts) == PARTS
        assert sorted(joint for part in layout.parts.values() for joint in part) == list(range(layout.num_joints))

    def test_mirror_swaps_sides_and_respects_the_tree(self, name):
        layout = get_layout(name)
        for joint, other in enumerate(layout.mirror):
            swapped = {"left": "right", "right": "left"}.get(layout.joints[joint].split("_")[0])
            assert (other == joint) == (swapped is None)
            assert layout.mirror[layout.parents[joint]] == layout.parents[other]
        left, right = layout.shoulders
        assert layout.mirror[left] == right
        assert left in layout.parts["left_arm"]

    def test_survives_plain_containers_and_yaml(self, name, tmp_path):
        layout = get_layout(name)
        content = layout.to_dict()
        assert Layout.from_dict(content) == layout
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content))
        assert get_layout(path) == layout and get_layout(str(path)) == layout

    def test_content_loads_as_weights_only(self, name, tmp_path):
        torch.save(get_layout(name).to_dict(), tmp_path / "layout.pt")
        assert get_layout(torch.load(tmp_path / "layout.pt", weights_only=True)) == get_layout(name)


def test_published_tables():
    ntu, coco, h36m = get_layout("ntu25"), get_layout("coco17"), get_layout("h36m17")
    assert ntu.mirror == (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22)
    assert ntu.parts["left_arm"] == (4, 5, 6, 7, 21, 22) and ntu.parts["torso"] == (0, 1, 2, 3, 20)
    assert (ntu.center, ntu.shoulders, ntu.root) == (1, (4, 8), 20)
    assert coco.parents == (0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14)
    assert h36m.parents == (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    hdm = get_layout("hdm05_31")
    parents = "0 0 1 2 3 4 0 6 7 8 9 0 11 12 13 14 15 13 17 18 19 20 21 20 13 24 25 26 27 28 27"
    assert hdm.parents == tuple(int(parent) for parent in parents.split())
    assert get_layout("kinect20").parents == (1, 2, 2, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18)


def test_a_layout_of_ones_own():
    layout = get_layout(stick())
    assert layout.parents == (0, 0, 1, 1) and layout.mirror == (0, 1, 3, 2) and layout.root == 0
    assert layout.index("chest") == 1
    assert get_layout(stick(bones={"chest": "hip", "left_hand": "chest", "right_hand": "chest"})) == layout
    small = get_layout({"joints": ["a", "b"], "bones": [["b", "a"]]})
    assert (small.center, small.shoulders, small.mirror, small.parts) == (0, (0, 0), (0, 1), {})
    assert get_layout(layout) is layout
    assert len({layout, get_layout(stick()), small}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bones": [["chest", "hip"], ["hip", "left_hand"], ["left_hand", "chest"]]},
            "cycle, hip -> left_hand -> chest",
        ),
        ({"bones": [["chest", "hip"], ["left_hand", "chest"]]}, "'hip', 'right_hand' are"),
        ({"bones": [["chest", "hip"], ["left_hand", "chst"]]}, "no joint 'chst' .did you mean 'chest'"),
        ({"bones": [*stick()["bones"], ["left_hand", "hip"]]}, "'left_hand' has two parents, 'chest' and 'hip'"),
        ({"bones": [["chest"]]}, "pairs"),
        ({"bones": "chest"}, "must be a list"),
        ({"bones": None}, "'bones' is missing"),
        ({"joints": ["hip", "chest", "left_hand", "left_hand", "right_hand"]}, "more than once: 'left_hand'"),
        ({"joints": []}, "no joints"),
        ({"mirror": [["left_hand", "right_hand"], ["left_hand", "hip"]]}, "'left_hand' is in two pairs"),
        ({"mirror": [["left_hand", "rigth_hand"]]}, "no joint 'rigth_hand'"),
        ({"parts": {"torso": ["hip", "belly"]}}, "part 'torso': there is no joint 'belly'"),
        ({"parts": {"torso": ["hip"], "leg": ["hip"]}}, "'hip' is in part 'torso' and in part 'leg'"),
        ({"center": "navel"}, "center: there is no joint 'navel'"),
        ({"shoulders": ["left_hand"]}, "two joints"),
        ({"up": "w"}, "up is 'w'"),
        ({"dims": 4}, "dims is 4"),
        ({"edges": []}, "unknown key 'edges'"),
    ],
)
def test_wrong_layouts_are_refused_by_name(changes, message):
    with pytest.raises(LayoutError, match=message):
        get_layout(stick(**changes))


def test_mirror_given_as_indices_must_lead_back():
    good = get_layout(stick())
    with pytest.raises(LayoutError, match=r"mirror of 'hip' is 'chest', whose mirror is 'left_hand'"):
        Layout("bad", good.joints, good.parents, (1, 2, 0, 3), good.parts, 0, (2, 3))
    with pytest.raises(LayoutError, match="refers to joint 9, but there are only 4"):
        Layout("bad", good.joints, (0, 0, 1, 9), good.mirror, good.parts, 0, (2, 3))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(LayoutError, match="unknown layout 'ntu_25': did you mean 'ntu25'"):
        get_layout("ntu_25")
    assert issubclass(LayoutError, SkelactError)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("a: [", "not valid YAML"), ("- 1", "a mapping")]
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LayoutError, match=rf"mine\.yaml.*{message}"):
        get_layout(path)
