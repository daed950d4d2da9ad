"""What ranks exchange, on paper and in fact; what is predicted of it."""

import functools
import json

import pytest
import torch
from torch import nn

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.benchmarks.collectives import BUCKETS, Exchange, Paper, Recorder, bucketed, on_paper, volumes
from skelact.benchmarks.scaling import Computing, Link, exchange_seconds, predict, stops_at
from skelact.benchmarks.steps import made_up_clips
from skelact.cli import main
from skelact.engine.strategies import ddp_options
from skelact.methods.caca import CACA
from skelact.methods.maskclr import MaskCLR
from skelact.methods.moco import AimCLR, SkeletonCLR
from skelact.methods.supcon import SupCon
from skelact.methods.supervised import Supervised
from skelact.methods.umurl import UmURL
from skelact.objectives import ranks
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.views import ViewMaker

CLIPS, WIDTH, STREAMS = 3, 8, ("joint", "bone", "motion")
KINDS = ("umurl", "skeletonclr", "aimclr", "caca", "maskclr", "supcon", "supervised")


def make(kind):
    torch.manual_seed(0)
    crop = CenterCrop(8)
    common = {"layout": "ntu25", "sampler": crop, "augment": ViewMaker(crop, views=None)}
    trunks = STGCN("ntu25", streams=STREAMS, hidden=2, num_features=4)
    tokens = DSTformer("ntu25", width=8, token_features=4, depth=1, num_heads=2)
    return {
        "umurl": lambda: UmURL(
            UmURLEncoder("ntu25", frames=8, width=8, streams=STREAMS), projector_width=WIDTH, **common
        ),
        "skeletonclr": lambda: SkeletonCLR(trunks, streams=STREAMS, embedding=WIDTH, queue_size=64, **common),
        "aimclr": lambda: AimCLR(trunks, streams=STREAMS, embedding=WIDTH, queue_size=64, mining_epoch=0, **common),
        "caca": lambda: CACA(trunks, streams=STREAMS, embedding=WIDTH, cross_epoch=0, **common),
        "maskclr": lambda: MaskCLR(tokens, num_classes=5, msk_path_start_epoch=0, head_hidden=WIDTH, **common),
        "supcon": lambda: SupCon(tokens, embedding=WIDTH, **common),
        "supervised": lambda: Supervised(STGCN("ntu25", hidden=2, num_features=4), num_classes=5, **common),
    }[kind]()


@functools.cache
def paper(kind, count):
    """Of a rank's step, on paper."""
    method = make(kind)
    return on_paper(method, [(torch.empty(1, 2, 8, 25, 3), None)] * method.num_views, CLIPS, count)


class Loss(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        out = self.method.training_step(batch, 0)
        return out["loss"] if isinstance(out, dict) else out


def recorded(rank, counts):
    """What a training step of each method exchanges: twice, for DDP sorts its buckets after the first."""
    found = {}
    for kind in KINDS:
        recorder, method = Recorder(), make(kind)
        trained = nn.parallel.DistributedDataParallel(Loss(method), **ddp_options())
        trained.register_comm_hook(
            torch.distributed.group.WORLD, lambda group, bucket, r=recorder: r.hook(group, bucket)
        )
        batch = made_up_clips(CLIPS, 2, 25, 3, torch.device("cpu"), seed=rank, classes=5)
        with recorder.listening():
            for _ in range(2):
                recorder.exchanges.clear()
                trained(batch).backward()
        found[kind] = [tuple(e) for e in recorder.exchanges]
    return found


@pytest.mark.ddp
def test_what_is_exchanged_is_what_paper_says(on_ranks):
    """Operations, purposes and bytes of the real step of each method on two processes; on paper nothing is run."""
    first, second = on_ranks(recorded, [CLIPS, CLIPS])
    assert first == second
    for kind in KINDS:
        found = volumes(Exchange(*e) for e in first[kind])
        assert found == volumes(paper(kind, 2).exchanges), kind
        trained = sum(4 * p.numel() for p in make(kind).parameters() if p.requires_grad)
        assert found["all_reduce, gradients"][1] == trained
    assert paper("umurl", 1).exchanges == []
    assert ranks.dist is torch.distributed


def test_volumes_are_those_of_the_formulas():
    """Of the table of docs/scaling.md, in bytes: b clips a rank, P ranks, S streams, embeddings of E numbers."""
    b, s, e = CLIPS, len(STREAMS), WIDTH
    found = {kind: volumes(paper(kind, 2).exchanges) for kind in KINDS}
    eight = volumes(paper("umurl", 8).exchanges)
    assert eight["all_reduce, loss"] == (1, 4 * 2 * s * 8 * b * e)
    assert {k: v for k, v in eight.items() if k != "all_reduce, loss"} == {
        k: v for k, v in found["umurl"].items() if k != "all_reduce, loss"
    }
    assert found["umurl"]["all_gather, loss"] == (1, 4 * 2 * s * b * e)
    assert found["umurl"]["all_reduce, loss"] == (1, 4 * 2 * s * 2 * b * e)
    # two normalisations in each of 2 S passes through a projector, and the probe; backward none for the probe
    assert found["umurl"]["all_gather, batch statistics"][0] == 2 * 2 * s + 1
    assert found["umurl"]["all_reduce, batch statistics"][0] == 2 * 2 * s
    assert found["skeletonclr"]["all_gather, loss"] == (1, 4 * s * b * e)
    # of ST-GCN 1 + 10 * 2 + 2 of its residuals on query and key; the key's have no way back
    assert found["skeletonclr"]["all_gather, batch statistics"][0] == 2 * 23 + 1 + 2
    assert found["caca"]["all_gather, loss"] == (4, 4 * 4 * s * b * e)
    assert found["supcon"]["all_gather, loss"] == (2, 4 * b * e + 8 * b)
    assert "all_gather, loss" not in found["supervised"]
    assert found["supervised"]["all_reduce, loss"] == (1, 12)


def test_ranks_repeat_what_they_compare_the_whole_batch_by():
    """Each of P ranks multiplies all embeddings with all others, P * P times as many as it has pairs of clips."""
    two, eight = (paper("caca", count).gflops for count in (2, 8))
    pairs = 3 * 2 * 2 * len(STREAMS) * WIDTH * CLIPS**2 / 1e9  # forward and backward, two similarities, 2 a product
    assert eight - two == pytest.approx((8**2 - 2**2) * pairs)


def test_buckets():
    first, later = BUCKETS
    assert bucketed([]) == [] and bucketed([8, 8]) == [16]
    assert bucketed([first, 8, later, 8]) == [first, 8 + later, 8]


def test_predictions():
    links = {operation: Link(1e-4, 1e9) for operation in ("all_reduce", "all_gather")}
    one, gather = Exchange("all_reduce", "gradients", 10**6), Exchange("all_gather", "loss", 10**6)
    assert exchange_seconds(one, 1, links) == 0
    assert exchange_seconds(one, 2, links) == pytest.approx(1e-4 + 1e-3)
    assert exchange_seconds(gather, 8, links) == pytest.approx(3e-4 + 7e-3)
    for exchange in (one, gather):
        times = [exchange_seconds(exchange, count, links) for count in (1, 2, 4, 8, 16)]
        assert times == sorted(times)
        slower = exchange_seconds(exchange, 4, {o: Link(2e-4, 5e8) for o in links})
        assert slower == pytest.approx(2 * exchange_seconds(exchange, 4, links))
    papers = {count: Paper(64 / count + (count > 1), [one, gather] if count > 1 else []) for count in (1, 2, 4, 8)}
    pairs = {count: Paper(64 / count, []) for count in papers}
    computing = Computing((0.0, 0.01), (0.0, 0.01), 1e12)
    rows = predict(papers, pairs, 64, computing, links)
    assert [row["clips each"] for row in rows] == [64, 32, 16, 8]
    assert rows[0]["step, ms"] == pytest.approx(640) and rows[0]["times as fast"] == 1
    assert rows[2]["computing, ms"] == pytest.approx(160 + 1)  # a GFLOP more than one of two has
    assert rows[2]["step, ms"] == pytest.approx(
        sum(v for k, v in rows[2].items() if k.endswith("ms") and k != "step, ms")
    )
    assert all(row["efficiency, %"] <= 100 for row in rows)
    free = predict(papers, papers, 64, computing, {o: Link(0.0, 1e30) for o in links})
    assert [row["times as fast"] for row in free] == pytest.approx([1, 2, 4, 8]) and stops_at(free) == 8
    far = predict(papers, pairs, 64, computing, {o: Link(0.05, 1e9) for o in links})
    assert stops_at(far) == 2
    assert [r["step, ms"] for r in far[1:]] > [r["step, ms"] for r in rows[1:]]


CONSTANTS = ["gflops=1e5", "bandwidth_gbs=10", "latency_us=20"]
SIZES = ["data.batch_size=4", "frames=8", "backbone.width=8", "method.projector_width=16", "trainer=cpu"]


def test_a_plan_with_assumed_constants_runs_nothing(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(["benchmark", "scaling", "experiment=umurl_hdm05", *SIZES, *CONSTANTS, f"output={file}"]) == 0
    found = json.loads(file.read_text())
    assert [row["ranks"] for row in found["predicted"]] == [1, 2, 4]
    assert found["all_gather: bandwidth, MB/s"] == 1e4 and found["all_reduce: latency, us"] == 20
    assert found["predicted"][0]["step, ms"] == pytest.approx(found["predicted"][0]["GFLOPs each"] / 1e2)
    assert "recorded, 2 ranks, all_gather, loss: bytes" not in found
    assert "efficiency" in capsys.readouterr().out
    assert main(["benchmark", "scaling", "experiment=umurl_hdm05", *SIZES, *CONSTANTS, "data.batch_size=7"]) == 2
    assert "data.batch_size=7 must be even" in capsys.readouterr().err


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["experiment=umurl_hdm05", *SIZES],
        ["experiment=actionmae_hdm05_rendered", "data.batch_size=4", "trainer=cpu", "data.frames=2", "frames=8"],
    ],
)
def test_two_processes_are_measured(options, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "found.json"
    assert main(["benchmark", "scaling", *options, "seconds=0.05", f"output={file}"]) == 0
    found = json.loads(file.read_text())
    paper = {k.removeprefix("on paper"): v for k, v in found.items() if k.startswith("on paper")}
    assert paper == {k.removeprefix("recorded"): v for k, v in found.items() if k.startswith("recorded")} and paper
    assert found["2 ranks of 2 clips: step, ms"] > 0 and found["2 ranks of 2 clips: predicted, ms"] > 0
    assert found["all_gather: latency, us"] > 0 and found["all_reduce: bandwidth, MB/s"] > 0
