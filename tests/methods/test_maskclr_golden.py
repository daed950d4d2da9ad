"""MaskCLR: equal to both releases, pathways and masks, losses and gradients, one step of the optimiser."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.dstformer import DSTformer
from skelact.clips import RaggedClips
from skelact.methods.maskclr import MaskCLR
from skelact.transforms.sampling import CenterCrop
from skelact.transforms.views import ViewMaker

GOLDEN = Path(__file__).parents[1] / "golden" / "maskclr"


def load(name):
    stored = np.load(GOLDEN / f"{name}.npz")
    return {key: torch.from_numpy(stored[key]) for key in stored}


def fill(method, golden, prefix):
    """Take the weights of a released state, whose names begin with `prefix`."""
    state = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    method.backbone.load_released({k: v for k, v in state.items() if k.startswith("backbone.")})
    names = {"fc1": "fc1", "norm": "bn", "fc2": "fc2"}
    ours = method.head.state_dict()
    for key in ours:
        module, _, leaf = key.partition(".")
        ours[key] = state[f"head.{names[module]}.{leaf}"]
    method.head.load_state_dict(ours)
    return method


def make(classes, hidden, width, rep, heads, max_frames, **options):
    backbone = DSTformer(
        "h36m17", width=width, token_features=rep, depth=2, num_heads=heads, mlp_ratio=2.0, max_frames=max_frames,
        absent="count",
    )  # fmt: skip
    views = ViewMaker(CenterCrop(6), views=None)
    return MaskCLR(
        backbone, "h36m17", CenterCrop(6), classes, augment=views, head_hidden=hidden,
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.01), head_lr=1e-3, **options,
    )  # fmt: skip


class Recorded:
    """The uniform numbers that the reference drew, joint by token, where a method asks for its own."""

    def __init__(self, uniform, clips, persons, frames):
        self.numbers = uniform.T.unflatten(0, (clips, persons, frames))

    def uniform(self, name, *shape):
        assert self.numbers.shape[1:] == shape
        return self.numbers


def test_both_pathways_of_the_second_release():
    golden = load("two_pathway")
    method = fill(make(7, 40, 16, 12, 4, 16, preset="as_released_c2"), golden, "sd.model.").eval()
    people, draws = method.people(golden["x"]), Recorded(golden["u"], 3, 2, 10)
    importance = method.importance(golden["x"])
    torch.testing.assert_close(importance.reshape(60, 17), golden["attn_standard"], rtol=0, atol=5e-5)
    hidden = method.pathways(golden["x"], None, draws)
    with torch.no_grad():
        _, again = method.pathway(people, method.mask(importance, people, draws), importance=True)
        torch.testing.assert_close(again.reshape(60, 17), golden["attn_masked"], rtol=0, atol=5e-5)
        torch.testing.assert_close(method.hidden(golden["x"]), golden["hidden_standard"], rtol=0, atol=5e-5)
        for name, value in hidden.items():
            torch.testing.assert_close(value, golden[f"hidden_{name}"], rtol=0, atol=5e-5)
            torch.testing.assert_close(method.head.fc2(value), golden[f"logits_{name}"], rtol=0, atol=5e-5)
        torch.testing.assert_close(method.logits(golden["x"]), golden["logits_standard"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("second", ["masked", "noisy"])
def test_pathways_and_losses_of_the_first_release(second):
    golden = load("two_pathway_tm")
    options = {} if second == "noisy" else {"second_view": second}
    method = make(7, 40, 16, 12, 4, 16, preset="as_released_c1", **options)
    fill(method, golden, "sd.model.").eval()
    importance = method.importance(golden["x"])
    torch.testing.assert_close(importance.softmax(-1), golden["attn_standard"], rtol=0, atol=5e-5)
    people, draws = method.people(golden["x"]), Recorded(torch.zeros(17, 80), 4, 2, 10)
    assert torch.equal(~method.mask(importance, people, draws), golden["keep"].bool())
    with torch.no_grad():
        masked = method.pathways(golden["x"], None, draws)["masked"]
        hidden = masked if second == "masked" else method.hidden(golden["x_noisy"])
        torch.testing.assert_close(hidden, golden[f"hidden_{second}"], rtol=0, atol=5e-5)
        torch.testing.assert_close(method.head.fc2(hidden), golden[f"logits_{second}"], rtol=0, atol=5e-5)
        views = [(golden["x"], None), (golden["x_noisy"], None)][: method.num_views]
        loss, values = method.objective(views, golden["labels"], draws)
    for name in ("ce", "sc", "cc"):
        torch.testing.assert_close(values[name], golden[f"loss_{name}_{second}"], rtol=0, atol=5e-5)
    torch.testing.assert_close(loss, values["ce"] + values["sc"] + values["cc"])


MODES = {
    "warmup": {"msk_path_start_epoch": 1},
    "cl": {},
    "cl_avgce": {"ce": "average"},
    "tcl": {"sample_loss": "targeted", "class_loss": "tcl"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_step_equals_the_released_one(mode):
    golden = load("train_step")
    options = {"preset": "as_released_c2", "msk_path_start_epoch": 0} | MODES[mode]

    def build(prefix):
        return fill(make(5, 16, 12, 8, 3, 10, **options).double(), golden, prefix)

    method, labels = build("sd0.model.").train(), golden["labels"]
    draws, logged = Recorded(golden["u"], 4, 2, 6), {}
    method.report = lambda values, batch_size: logged.update(values)
    method.views = lambda batch: [(golden["x"], None)]
    if mode == "warmup":
        batch = RaggedClips.pack([torch.zeros(1, 2, 17, 3)] * 4, label=labels)
        loss = method.training_step(batch)
        logged["ce"] = logged["loss"]
    else:
        loss, logged = method.objective([(golden["x"], None)], labels, draws)
        for name in ("sc", "cc"):
            expected = golden[f"{mode}.loss_{name}"]  # the targeted class term is single precision there
            single = expected.dtype == torch.float32
            torch.testing.assert_close(logged[name].to(expected), expected, rtol=0, atol=1e-6 if single else 2e-7)
    torch.testing.assert_close(logged["ce"], golden[f"{mode}.loss_ce"], rtol=0, atol=2e-7)
    torch.testing.assert_close(loss, golden[f"{mode}.loss_total"], rtol=0, atol=1e-6 if mode == "tcl" else 2e-7)
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert ("backbone.mask_token" in gradients) == (mode != "warmup")
    if mode in ("cl_avgce", "tcl"):
        norms = sorted(float(golden[key]) for key in golden if key.startswith(f"{mode}.gradnorm."))
        found = sorted(float(g.norm()) for g in gradients.values())
        assert found == pytest.approx(norms, abs=2e-7)
        if mode == "tcl":
            torch.testing.assert_close(method.memory, golden["tcl.tp_out"], rtol=0, atol=1e-6)
        return
    expected = {f"g.{key.removeprefix(f'{mode}.grad.model.')}": golden[key] for key in golden if f"{mode}.grad." in key}
    zeros = {f"g.{key.removeprefix('sd0.model.')}": torch.zeros_like(golden[key]) for key in golden if "sd0." in key}
    reference = fill(make(5, 16, 12, 8, 3, 10, **options).double(), zeros | expected, "g.")
    for name, value in reference.named_parameters():
        found = gradients.get(name, torch.zeros_like(value))
        torch.testing.assert_close(found, value.detach(), rtol=0, atol=2e-7, msg=lambda m, n=name: f"{n}: {m}")
    optimizer = method.configure_optimizers()
    optimizer.step()
    after = build(f"{mode}.sd1.model.").state_dict()
    for name, value in method.state_dict().items():
        clear = gradients[name].abs() > 1e-7 if name in gradients else torch.ones_like(value, dtype=torch.bool)
        torch.testing.assert_close(
            value[clear], after[name][clear], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    method.scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
    made = method.configure_optimizers()
    made["optimizer"].step()
    made["lr_scheduler"]["scheduler"].step()
    rates = [group["lr"] for group in made["optimizer"].param_groups]
    assert rates == pytest.approx(golden["lr_after_epoch1"].tolist())
