"""Missing streams asked of classifiers, encoders and methods of several modalities."""

from functools import partial

import numpy as np
import pytest
import torch

from skelact.backbones.modality import SkeletonEncoder
from skelact.backbones.signal import SignalEncoder
from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.errors import SkelactError
from skelact.methods.actionmae import ActionMAE
from skelact.methods.caca import CACA
from skelact.methods.multimodal import MultiModal
from skelact.methods.supervised import Supervised
from skelact.protocols.base import encoder_parameters, forward_gflops
from skelact.protocols.features import subset_name, subsets
from skelact.protocols.linear import LinearProbe
from skelact.protocols.missing import MissingStreams
from skelact.results import load_scores
from skelact.tables import markdown
from skelact.transforms.sampling import CenterCrop

STREAMS = ("joint", "bone", "motion")
FULL = "top1/bone+joint+motion"


def trunks(data, streams=STREAMS):
    torch.manual_seed(0)
    network = STGCN(data.layout.to_dict(), 1, streams=streams, hidden=2, num_features=8, dropout=0.0)
    for parameter in network.parameters():  # biases begin as zeros, which nothing could tell from a missing stream
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def supervised(data, backbone, **options):
    torch.manual_seed(1)
    return Supervised(backbone, data.layout.to_dict(), CenterCrop(8), 3, head_init=1.0, **options).eval()


@pytest.mark.parametrize("fusion", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["stgcn", "umurl"])
def test_a_classifier_answers_for_all_subsets_at_once(data, kind, fusion):
    network = trunks(data) if kind == "stgcn" else UmURLEncoder(data.layout, 1, 8, streams=STREAMS, width=8)
    method, batch = supervised(data, network, fusion=fusion), next(data.batches("test"))
    views, mask = method.sample(batch)
    every = subsets(STREAMS)
    with torch.no_grad():
        for fill, blank in (("drop", False), ("zero_input", True)):
            found = method.classify_subsets(batch, every, fill)
            single = torch.stack([method.logits(views, subset, mask, blank) for subset in every])
            torch.testing.assert_close(found, single)
        own, zeros = method.classify_subsets(batch, every), method.classify_subsets(batch, every, "zero_input")
        torch.testing.assert_close(own[-1], method.classify(batch))
        torch.testing.assert_close(own[-1], zeros[-1])
        assert not torch.allclose(own[0], zeros[0])
        still = method.inputs(views, ["joint"], mask, blank=True)
        assert still["joint"].any() and not still["bone"].any() and not still["motion"].any()
    with pytest.raises(SkelactError, match=r"fill=guess.*drop, zero_input"):
        method.classify_subsets(batch, every, "guess")


def test_rows_of_a_classifier(data, tmp_path):
    method = supervised(data, trunks(data))
    batch = next(data.batches("test", data.size("test")))
    with torch.no_grad():  # so that not all clips are of one class
        for name, head in method.heads.items():
            head.bias -= method.classify(batch, [name]).mean(0)
    records = MissingStreams(label="mine").run(
        method, data, scores=tmp_path / "scores.npz", untrained=lambda seed: supervised(data, trunks(data))
    )
    assert [(r.method, r.extra["fill"]) for r in records] == [
        ("mine", "drop"), ("mine", "zero_input"), ("raw pose", "drop"),
    ]  # fmt: skip
    own, zeros, pose = records
    assert own.metrics[FULL] == zeros.metrics[FULL] and own.metrics["top1/rate0.9"] != own.metrics[FULL]
    logits = torch.cat([method.classify(batch).detach() for batch in data.batches("test")])
    labels = torch.from_numpy(data.labels("test"))
    assert own.metrics[FULL] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    kept = load_scores(tmp_path / "scores.npz")
    assert set(kept.scores) == {f"missing/mine/drop/{subset_name(s)}" for s in subsets(STREAMS)}
    np.testing.assert_allclose(kept.entry("missing/mine/drop/bone+joint+motion"), logits.numpy(), atol=0.02, rtol=1e-2)
    assert list(kept.names) == data.clip_names("test")
    # made-up classes are three poses: their nearest neighbour knows them
    assert pose.metrics["top1/joint"] > 90 and "top5/joint" not in pose.metrics
    assert set(own.extra["differences"]) == {"fill zero_input", "raw pose"}
    assert own.extra["chance"] == pytest.approx(100 / 3) and own.parameters > own.extra["repetitions"] == 1
    text = markdown(records)
    assert "| worst is |" in text and "missing 90 %" in text and "fill drop, top1/mean: mine - raw pose" in text
    ask = {"fills": "drop", "subsets": [["joint"], ["bone", "joint"]], "baselines": False}
    (one,) = MissingStreams(**ask).run(method, data)
    five = {name for name in one.metrics if name.startswith("top5/")}
    assert five == {f"top5/{name}" for name in ("joint", "bone+joint", "mean", "worst")}
    assert one.metrics["top1/joint"] == own.metrics["top1/joint"] and "rates" in one.extra["skipped"]


def test_ways_to_stand_in_under_a_fixed_head(data, make):
    """Of three trunks each has its columns; what replaces them is seen in the queries' logits."""
    torch.manual_seed(0)
    caca = CACA(
        trunks(data),
        data.layout.to_dict(),
        CenterCrop(8),
        streams=STREAMS,
        embedding=4,
        projector_hidden=4,
        predictor_hidden=4,
    )
    fills = ["drop", "mean_token", "zero_input", "late_average"]
    ask = {"recipe": "aimclr", "seeds": 2, "epochs": 4, "labels": "all", "baselines": ["raw_pose"]}
    records = MissingStreams(fills=fills, **ask).run(caca, data)
    rows = [(r.method, r.extra["head"], r.extra.get("fill")) for r in records]
    assert rows == [
        *(("caca", "fixed", fill) for fill in fills), ("caca", "own", None),
        ("raw pose", "fixed", "mean_token"), ("raw pose", "own", None),
    ]  # fmt: skip
    drop, mean, zeros, late, own = records[:5]
    assert drop.metrics[FULL] == mean.metrics[FULL] == zeros.metrics[FULL] == own.metrics[FULL]
    for stream in STREAMS:
        assert late.metrics[f"top1/{stream}"] == own.metrics[f"top1/{stream}"]  # a head of that stream alone
    assert len({tuple(r.metrics.values())[:8] for r in (drop, mean, zeros, late)}) > 1
    assert "knn1/joint" in zeros.metrics and "knn1/joint" not in late.metrics
    assert set(drop.extra["differences"]) == {"fill mean_token", "fill zero_input", "fill late_average", "raw pose"}
    default = MissingStreams(**ask).run(caca, data)
    assert [r.extra.get("fill") for r in default] == ["drop", None, "mean_token", None]
    assert default[0].metrics == drop.metrics
    # UmURL has no columns of a stream: nothing to put a mean into
    with pytest.raises(SkelactError, match=r"protocol\.fills: mean_token.*drop, zero_input, late_average"):
        MissingStreams(fills=["mean_token"], **ask).run(make(0), data)
    found = MissingStreams(fills=["zero_input", "late_average"], heads=["fixed"], **ask).run(make(0), data)
    assert [r.extra["fill"] for r in found] == ["zero_input", "late_average", "mean_token"]


def test_a_fixed_head_sees_the_training_mean(data):
    from skelact.protocols.features import FeatureTable, Subject
    from skelact.protocols.subset_fills import filled

    caca = supervised(data, trunks(data))
    subject = Subject("x", "pretrained", caca, data)
    every = subsets(STREAMS)
    train, test = subject.tables("train", every), subject.tables("test", every)
    found = filled(subject, "mean_token", train[STREAMS], test, every)
    assert isinstance(found[("bone",)], FeatureTable)
    width = train[STREAMS].features.shape[1] // 3
    columns = {name: slice(i * width, (i + 1) * width) for i, name in enumerate(STREAMS)}
    bone, whole, mean = found[("bone",)].features, test[STREAMS].features, train[STREAMS].features.mean(0)
    torch.testing.assert_close(bone[:, columns["bone"]], whole[:, columns["bone"]])
    torch.testing.assert_close(bone[:, columns["joint"]], mean[columns["joint"]].expand(len(bone), -1))
    zeros = filled(subject, "zero_input", train[STREAMS], test, every)[("bone",)].features
    torch.testing.assert_close(zeros[:, columns["bone"]], whole[:, columns["bone"]])
    assert zeros[:, columns["joint"]].any() and not test[("bone",)].features[:, columns["joint"]].any()


class Modal:
    """The made-up skeletons with a signal that tells the class; some clips lack one, the last test clip both."""

    def __init__(self, data):
        self.inner = data
        for name in ("name", "split", "fingerprint", "num_classes", "layout", "class_names", "fit", "size"):
            setattr(self, name, getattr(data, name))
        self.labels, self.clip_names, self.groups = data.labels, data.clip_names, data.groups

    def batches(self, part, batch_size=None, device=None):
        start, count = 0, self.size(part)
        for batch in self.inner.batches(part, batch_size, device):
            position = torch.arange(start, start + len(batch))
            start += len(batch)
            has = torch.stack([position % 4 != 1, position % 4 != 2], 1)
            if part == "test":
                has[position == count - 1] = False
            signal = torch.nn.functional.one_hot(batch.label, 3)[:, None].float().repeat(1, 6, 1)
            parts = {
                "skeleton": batch.select(has[:, 0]),
                "inertial": Frames(signal[has[:, 1]], torch.ones(int(has[:, 1].sum()), 6, dtype=torch.bool)),
            }
            parts = {name: rows for name, rows in parts.items() if len(rows)}
            yield ModalClips(parts, has, ("skeleton", "inertial"), batch.label, batch.index)


@pytest.fixture
def modal(data):
    data.setup()
    return Modal(data)


def multimodal(data, cls=MultiModal, names=("skeleton", "inertial"), **options):
    layout = data.layout.to_dict()
    torch.manual_seed(0)

    def skeletons(width):
        return SkeletonEncoder(width, UmURLEncoder(layout, 1, 8, streams=["joint"], width=8), layout, CenterCrop(8))

    encoders = {"skeleton": skeletons, "inertial": partial(SignalEncoder, channels=3, depth=1, num_heads=2)}
    sizes = {"width": 8, "num_heads": 2, "mlp_ratio": 2.0, "fusion_depth": 1, "layout": layout}
    return cls(encoders, names, 3, fusion="sum", **{**sizes, **options}).eval()


@pytest.mark.parametrize(("cls", "first"), [(MultiModal, "drop"), (ActionMAE, "reconstruct")])
def test_methods_of_several_modalities_answer(modal, cls, first):
    method = multimodal(modal, cls)
    *own, pose = MissingStreams().run(method, modal)
    assert own[0].method == f"{cls.__name__.lower()} sum" and [r.extra["fill"] for r in own] == list(method.fills)
    assert own[0].extra["fill"] == first and own[0].extra["streams"] == "skeleton+inertial"
    clips = modal.size("test")
    lacking = [sum(i % 4 == k or i == clips - 1 for i in range(clips)) for k in (1, 2)]
    for record in own:
        assert record.extra["unanswered"] == {"skeleton": lacking[0], "inertial": lacking[1], "inertial+skeleton": 1}
        assert record.metrics["top5/inertial+skeleton"] == pytest.approx(100 * (clips - 1) / clips)
        assert record.gflops > 0 and record.parameters == sum(p.numel() for p in method.parameters())
    # of the raw pose only what is a skeleton, and no means to be compared with
    assert set(pose.metrics) == {"top1/skeleton"} and pose.metrics["top1/skeleton"] > 60
    assert pose.extra["unanswered"] == {"skeleton": lacking[0]} and "worst" not in pose.extra
    assert "raw pose" not in own[0].extra["differences"]
    # what is right does not depend on how clips are put into batches
    modal.inner.eval_batch_size = 1
    again = MissingStreams(baselines=False).run(method, modal)
    assert [r.metrics for r in again] == [pytest.approx(r.metrics) for r in own]


def test_raw_pose_is_asked_only_where_there_is_a_skeleton(modal):
    method = multimodal(modal, names=("inertial",))
    (record,) = MissingStreams().run(method, modal)
    assert record.extra["fill"] == "drop" and record.metrics["top1/mean"] == record.metrics["top1/inertial"]


def test_costs_and_probes_of_encoders_without_a_backbone(modal):
    method = multimodal(modal)
    parts = [sum(p.numel() for p in method.encoders[name].parameters()) for name in method.streams]
    assert encoder_parameters(method) == sum(parts) and encoder_parameters(method, ["inertial"]) == parts[1]
    whole, signal = (forward_gflops(method, modal, streams=s) for s in (None, ["inertial"]))
    assert 0 < signal < whole
    (single,) = LinearProbe(seeds=1, epochs=2, labels="all", streams=["inertial"]).run(method, modal)
    assert single.parameters == parts[1] + 3 * (8 + 1)
    both, pose = LinearProbe(seeds=1, epochs=2, labels="all").run(method, modal)
    assert both.parameters == sum(parts) + 3 * (16 + 1) and pose.extra["streams"] == "joint"
    assert isinstance(next(modal.batches("test")).parts["skeleton"], RaggedClips)


def test_bad_options_are_named(data, make):
    with pytest.raises(SkelactError, match=r"protocol\.rates.*probability"):
        MissingStreams(rates=[1.5])
    with pytest.raises(SkelactError, match=r"protocol\.subsets.*joint, bone, motion"):
        MissingStreams(subsets=[["rgb"]]).run(make(0), data)
