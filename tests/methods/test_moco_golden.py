"""SkeletonCLR, AimCLR and CrosSCLR against tensors computed with the reference code."""

import pytest
import torch
from torch.nn import functional as F

from skelact.interop import contrastive
from skelact.methods.moco import info_nce
from tests.methods.golden_contrastive import at_epoch, check_stats, check_weights, close, dense, golden, load

STREAMS = {"joint": "", "motion": "_motion", "bone": "_bone"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_skeletonclr_steps(dtype):
    data = golden("skeletonclr")
    method, sgd = load("skeletonclr", data, dtype, momentum=0.99)
    views = [(dense(data[key], dtype), None) for key in ("im_q", "im_k")]
    for it in (0, 1):
        q, k = method.embed(*views[0]), method.embed_keys(*views[1])
        logits = method.logits(q, k)
        close(logits[0], data[f"it{it}/logits"], dtype)
        method.queue.push(k)
        loss = info_nce(logits).sum()
        close(loss, data[f"it{it}/loss"], dtype)
        close(method.queue.keys[0], data[f"it{it}/queue"], dtype)
        assert int(method.queue.pointer) == int(data[f"it{it}/queue_ptr"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    if dtype == torch.float64:
        found = check_weights(method, data, "after", contrastive.moco_rows(method))
        check_stats(found, "skeletonclr", data, "after")


def dense_views(data):
    return [(dense(data[key]), None) for key in ("im_q", "im_k")]


def train(method, sgd, views, steps=2):
    losses = []
    for _ in range(steps):
        each, _ = method.objective(views)
        losses.append(each.detach())
        sgd.zero_grad()
        each.sum().backward()
        sgd.step()
    return torch.stack(losses)


@pytest.mark.parametrize(("stage", "epoch", "topk"), [("d3m", 0, 1), ("nnm_top1", 200, 1), ("nnm_top3", 200, 3)])
def test_aimclr_steps(stage, epoch, topk, monkeypatch):
    data = golden("aimclr")
    method, sgd = load("aimclr", data, momentum=0.99, topk=topk)
    at_epoch(method, monkeypatch, epoch)
    views = [(dense(data[key]), None) for key in ("im_q_extreme", "im_q", "im_k")]
    fresh, _ = load("aimclr", data, momentum=0.99)
    q, (e, d) = fresh.embed(*views[1]), fresh.embed_extreme(*views[0])
    k = fresh.embed_keys(*views[2])
    logits = fresh.logits(q, k)
    close(logits[0], data[f"{stage}/logits"])
    close(logits[0].softmax(1), data[f"{stage}/target_prob"])
    close(fresh.logits(e, k)[0].softmax(1), data[f"{stage}/prob_extreme"])
    close(fresh.logits(d, k)[0].softmax(1), data[f"{stage}/prob_extreme_drop"])
    if stage != "d3m":
        fresh.topk = topk
        assert torch.equal(fresh.mine(q, e, d)[0], data[f"{stage}/target"].bool())
    losses, values = method.objective(views)
    close(values["loss_info"], data[f"{stage}/loss_info"])
    close(2 * values["loss_d3m"], data[f"{stage}/loss_d3m_extreme"] + data[f"{stage}/loss_d3m_drop"])
    close(losses, data[f"{stage}/loss"])
    close(method.queue.keys[0], data[f"{stage}/queue"])
    method, sgd = load("aimclr", data, momentum=0.99, topk=topk)
    close(train(method, sgd, views), data[f"{stage}/step_losses"])
    close(method.queue.keys[0], data[f"{stage}/queue_after2"])
    found = check_weights(method, data, f"{stage}/after2", contrastive.moco_rows(method))
    check_stats(found, "aimclr", data, f"{stage}/after2")


@pytest.mark.parametrize("stream", ["motion", "bone"])
def test_aimclr_streams(stream):
    data = golden("aimclr")
    method, _ = load("aimclr", data, momentum=0.99, streams=(stream,))
    views = [(dense(data[key]), None) for key in ("im_q_extreme", "im_q", "im_k")]
    close(method.derive(views[1][0][:1])[stream], dense(data[f"stream_{stream}/im_q"]))
    close(method.objective(views)[0], data[f"stream_{stream}/step_loss"].reshape(1))


@pytest.mark.parametrize("name", ["crossclr_2views", "crossclr_3views"])
def test_crosclr_stages(name, monkeypatch):
    data = golden(name)
    views = dense_views(data)
    method, _ = load("crosclr", data, momentum=0.99)
    assert method.head.tied and method.preset == "as_released"
    q, k = method.embed(*views[0]), method.embed_keys(*views[1])
    logits = method.logits(q, k)
    for number, stream in enumerate(method.streams):
        close(logits[number], data[f"intra/logits_{stream}"])
        close(F.cross_entropy(logits[number], torch.zeros(4, dtype=torch.int64)), data[f"intra/loss_{stream}"])
    method.queue.push(k)
    for number, stream in enumerate(method.streams):
        close(method.queue.keys[number], data[f"intra/queue{STREAMS[stream]}"])
        assert int(method.queue.pointer) == 0


@pytest.mark.parametrize("name", ["crossclr_2views", "crossclr_3views"])
@pytest.mark.parametrize(
    ("setting", "topk", "context"), [("top1_ctx", 1, True), ("top3_ctx", 3, True), ("top1_noctx", 1, False)]
)
def test_crosclr_crosses_streams(name, setting, topk, context):
    data = golden(name)
    method, _ = load("crosclr", data, momentum=0.99, topk=topk, context=context, cross_epoch=0)
    q, k = method.embed(*dense_views(data)[0]), method.embed_keys(*dense_views(data)[1])
    keys, queue = (q * k).sum(-1, keepdim=True), method.queue.similarity(q)
    for a, first in enumerate(method.streams):
        for b, second in enumerate(method.streams):
            key = f"cross_{setting}"
            pair = first[0] + second[0]
            if a == b:
                continue
            logits, positives = method.cross_logits(keys[a], queue[a], queue[b])
            if f"{key}/logits_{pair}" in data:
                close(logits, data[f"{key}/logits_{pair}"])
            assert torch.equal(positives, data[f"{key}/mask_{pair}"].bool())
            close(info_nce(logits, positives), data[f"{key}/loss_{pair}"])


@pytest.mark.parametrize("name", ["crossclr_2views", "crossclr_3views"])
@pytest.mark.parametrize(("stage", "epoch"), [("intra", 0), ("cross", 150)])
def test_crosclr_steps(name, stage, epoch, monkeypatch):
    data = golden(name)
    method, sgd = load("crosclr", data, momentum=0.99)
    at_epoch(method, monkeypatch, epoch)
    losses = train(method, sgd, dense_views(data))
    close(losses, data[f"{stage}/step_losses"])
    found = check_weights(method, data, f"{stage}/after2", contrastive.moco_rows(method))
    check_stats(found, name, data, f"{stage}/after2")
