"""`trainer.compile`: compiled networks train as others do, and where they cannot be compiled training goes on."""

import copy
import csv
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

import skelact
from skelact.engine.compiling import Compiled, regions
from tests.engine.recipes import RECIPES
from tests.methods.every import EVERY, make, step

#: Of ST-GCN, whose convolutions on a CPU have other strides than `aot_eager` expects; the code generator asks for them.
ONE_STREAM = ("supervised, stgcn", "multimodal", "actionmae")
QUICK = (("supcon", "last"), ("umurl", "last"))
CASES = [c if c in QUICK else pytest.param(*getattr(c, "values", c), marks=pytest.mark.slow) for c in EVERY]


@pytest.fixture
def compiled(request):
    """What compiles a network until the test is over; without a code generator, which takes its time.

    But convolutions on channels-last memory need one: without it torch believes in other strides than they make.
    """
    convolves = request.node.name.endswith(("stgcn-last]", "multimodal-last]", "actionmae-last]"))
    made = Compiled(True, "inductor" if convolves else "aot_eager")

    def install(network, backend="aot_eager"):
        made.backend = backend
        made.install(network, torch.device("cpu"))
        counters.clear()  # of the attempt whether anything can be compiled
        return made

    yield install
    made.remove()


def steps(method, batches):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 1e-2)
    return [step(method, batch, optimizer, number).detach() for number, batch in enumerate(batches)]


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_steps_equal_those_without(compiled, name, stage):
    method, batch = make(name, stage)
    for module in method.modules():  # what accelerators run
        if getattr(module, "form", None) == "auto":
            module.form = "grouped"
    other, keys = copy.deepcopy(method), list(method.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="trainer.compile")
        compiled(method, "eager" if name in ONE_STREAM else "aot_eager")
        found = steps(method, [batch])
        graphs = counters["stats"]["unique_graphs"]
        assert graphs >= len({(type(module), region) for module, region in regions(method)}) > 0
        assert not counters["graph_break"]
        found += steps(method, [batch])
        assert counters["stats"]["unique_graphs"] == graphs  # nothing is compiled again
    assert list(method.state_dict()) == keys
    expected = steps(other, [batch]) + steps(other, [batch])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(method.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_copies_are_compiled_with_weights_of_their_own(compiled):
    method, batch = make("supcon")
    compiled(method)
    twin = copy.deepcopy(method)
    with torch.no_grad():
        twin.backbone.joints_embed.weight.zero_()
        twin.backbone.joints_embed.bias.zero_()
    views = method.views(batch)[0]
    assert not torch.equal(
        method.embed(
            *views,
        ),
        twin.embed(*views),
    )


def test_other_batch_sizes_are_compiled_once_more(compiled):
    method, batch = make("supcon")
    compiled(method)
    graphs = []
    for count in (8, 7, 6, 5, 8):
        method.training_step(batch.select(torch.arange(count)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2, 2]


def test_what_is_evaluated_is_not_compiled(compiled):
    method, batch = make("supcon")
    made = compiled(method)
    with torch.no_grad():
        method.eval().features(batch)
    assert not counters["stats"]["unique_graphs"]
    made.remove()
    assert not any(name in vars(module) for module, name in regions(method))


class Odd(torch.nn.Module):
    """A network of the user's own that reads a value on the way."""

    compiles = ("forward",)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight if x.detach().sum().item() > 0 else -x


def test_what_cannot_be_compiled_runs_as_it_is(compiled):
    network = torch.nn.Sequential(Odd(), Odd())
    with pytest.warns(
        UserWarning, match=r"trainer.compile=True: Odd.forward is not compiled \(.*; the training"
    ) as told:
        compiled(network)
        for _ in range(2):
            out = network(torch.ones(3))
            out.sum().backward()
    assert len([w for w in told if "trainer.compile" in str(w.message)]) == 1
    assert torch.equal(out, torch.ones(3)) and torch.equal(network[0].weight.grad, torch.full((3,), 2.0))


def losses(run):
    return [float(row["train/loss"]) for row in csv.DictReader((run / "metrics.csv").open()) if row["train/loss"]]


def test_without_a_compiler_training_goes_on(skelact_run, tmp_path, monkeypatch):
    """And says so before the first step, once."""
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    assert skelact_run("run_dir=without") == 0
    with pytest.warns(UserWarning, match="nothing can be compiled here .*No working C") as told:
        assert skelact_run("run_dir=with", "trainer.compile=true") == 0
    assert len([w for w in told if "trainer.compile" in str(w.message)]) == 1
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_an_unknown_mode_is_named(skelact_run, capsys):
    assert skelact_run("run_dir=run", "trainer.compile=fastest") == 2
    assert (
        "trainer.compile=fastest is neither true, false nor one of default, reduce-overhead" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.ddp
def test_runs(skelact_run, tmp_path, monkeypatch, capfd):
    """With code for this machine: equal losses and probes; checkpoints go both ways; two processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*RECIPES["umurl"], "evaluate=[linear]", "protocols.linear.epochs=2", "protocols.linear.draws=2"]
    options += ["protocols.linear.seeds=2", "trainer.max_epochs=2"]
    assert skelact_run(*options, "run_dir=plain", tiny=False) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trainer.compile.*")
        assert skelact_run(*options, "trainer.compile=true", "run_dir=fast", tiny=False) == 0
        assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
        assert skelact_run("resume=fast", "trainer.max_epochs=3", tiny=False) == 0
    again = ["protocol=pretrain", "callbacks=minimal", "trainer=cpu", "trainer.max_epochs=1", "data.batch_size=8"]
    assert skelact_run("checkpoint=plain", *again, "trainer.compile=true", "run_dir=third", tiny=False) == 0
    assert skelact_run("checkpoint=fast", *again, "run_dir=fourth", tiny=False) == 0
    assert skelact_run("resume=plain", "trainer.max_epochs=3", tiny=False) == 0
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.compile=true"]
    assert skelact_run(*options, *two, "run_dir=two", tiny=False) == 0
    assert "trainer.compile" not in capfd.readouterr().err  # of the ranks
    assert losses(tmp_path / "two") == pytest.approx(
        losses(tmp_path / "plain")[: len(losses(tmp_path / "two"))], rel=1e-3
    )
    states = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("plain", "fast", "two")
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    view = torch.randn(2, 1, 8, 6, 3)
    found, expected = (skelact.load(tmp_path / run).encode(view) for run in ("fast", "plain"))
    torch.testing.assert_close(found, expected, rtol=1e-1, atol=1e-2)
