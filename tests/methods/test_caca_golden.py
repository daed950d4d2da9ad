"""SkeletonBYOL, CMAL and 3s-CACA against tensors computed with the reference code."""

import pytest
import torch
from torch.nn import functional as F

from skelact.interop import contrastive
from skelact.methods.caca import byol_loss
from tests.methods.golden_contrastive import at_epoch, check_stats, check_weights, close, dense, golden, load


def views(data):
    return [(dense(data[key]), None) for key in ("seq_1", "seq_2")]


def outputs(method, data):
    z, p = [], []
    for view, mask in views(data):
        z.append(method.project(view, mask))
        p.append(method.predictor(z[-1]))
    return z, p, [method.target(view, mask) for view, mask in views(data)]


def train(method, sgd, data, steps=2):
    losses = []
    for _ in range(steps):
        each, _ = method.objective(*outputs(method, data))
        losses.append(each.detach())
        sgd.zero_grad()
        each.sum().backward()
        sgd.step()
        method.follow()
    return torch.stack(losses)


def test_single_stream():
    data = golden("caca_single")
    method, _ = load("cmal", data, momentum=0.9)
    z, p, t = outputs(method, data)
    for i in (0, 1):
        close(z[i][0], data[f"proj_{i + 1}"])
        close(p[i][0], data[f"pred_{i + 1}"])
        close(t[i][0], data[f"target_{i + 1}"])
    close(2 - 2 * F.cosine_similarity(p[0][0], p[1][0]), data["loss_min"])
    loss, _ = method.objective(z, p, t)
    close(loss, data["loss_cmal"])
    close(byol_loss(p, t), data["loss_byol"])
    loss.sum().backward()
    close(method.predictor.output.weight.grad[0], data["grad_cmal/online_predictor.net.3.weight"])
    close(method.projector.hidden.weight.grad[0], data["grad_cmal/online_projector.net.0.weight"])


def test_single_stream_steps():
    data = golden("caca_single")
    method, sgd = load("cmal", data, momentum=0.9)
    close(train(method, sgd, data)[:, 0], data["step_losses"])
    found = check_weights(method, data, "after2", contrastive.bootstrap_rows(method))
    check_stats(found, "caca_single", data, "after2")


@pytest.mark.parametrize("stream", ["motion", "bone"])
def test_single_streams(stream):
    data = golden("caca_single")
    method, _ = load("cmal", data, momentum=0.9, streams=(stream,))
    close(method.objective(*outputs(method, data))[0], data[f"step_loss_{stream}"].reshape(1))


def test_marks_votes_and_losses(monkeypatch):
    data = golden("caca_3views")
    method, _ = load("caca", data, momentum=0.9)
    assert method.streams == ("joint", "motion", "bone") and (method.topk, method.vote, method.lamb) == (2, 2, 10.0)
    close(method.objective(*outputs(method, data))[0], torch.cat([data[f"intra/loss_{s}"] for s in method.streams]))
    at_epoch(method, monkeypatch, 60)
    method, _ = load("caca", data, momentum=0.9)
    z, p, t = outputs(method, data)
    unit = [F.normalize(x, dim=-1) for x in (*p, *t)]
    similarities = [unit[0] @ unit[3].mT, unit[1] @ unit[2].mT]
    together = method.agree(*similarities)
    assert torch.equal(together, data["pseudo_label"].bool())
    cmal = method.cmal(z, p, t)
    losses, values = method.objective(z, p, t)
    for number, stream in enumerate(method.streams):
        part = f"cross/{stream}"
        for i in (0, 1):
            close(p[i][number], data[f"{part}/pred_{i + 1}"])
            close(t[i][number], data[f"{part}/target_{i + 1}"])
            close(similarities[i][number], data[f"{part}/sim_{i + 1}"])
            close(method.cscl(similarities[i : i + 1], together)[number], data[f"{part}/loss_cscl_{i + 1}"])
        close(cmal[number], data[f"{part}/loss_cmal"])
        close(losses[number], data[f"{part}/loss"])
    close(losses.sum(), data["cross/loss"])
    assert float(values["positives"]) == data["pseudo_label"].sum() / 8 - 1


@pytest.mark.parametrize(("stage", "epoch"), [("intra", 0), ("cross", 60)])
def test_three_stream_steps(stage, epoch, monkeypatch):
    data = golden("caca_3views")
    method, sgd = load("caca", data, momentum=0.9)
    at_epoch(method, monkeypatch, epoch)
    before = [p.clone() for p in method.teacher.parameters()]
    losses = train(method, sgd, data)
    close(losses if stage == "intra" else losses.sum(1), data[f"{stage}/step_losses"])
    found = check_weights(method, data, f"{stage}/after2", contrastive.bootstrap_rows(method))
    check_stats(found, "caca_3views", data, f"{stage}/after2")
    moved = any(not torch.equal(a, b) for a, b in zip(before, method.teacher.parameters(), strict=True))
    assert moved == (stage == "intra")
