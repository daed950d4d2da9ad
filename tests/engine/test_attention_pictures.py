"""`skelact plot kind=attention` and `kind=pathways`."""

import pytest
import torch
from PIL import Image

TINY = [
    "data=custom", "data.name=tiny", "data.batch_size=8", "frames=8", "protocol=supervised", "protocol.baselines=false",
    "backbone=dstformer", "backbone.width=8", "backbone.token_features=4", "backbone.depth=1", "backbone.num_heads=2",
    "augment=motionbert", "sampling@method.sampler=motionbert", "data.normalize=none", "method.head_hidden=8",
    "callbacks=minimal", "trainer.accelerator=cpu", "trainer.max_steps=1", "method.msk_path_start_epoch=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(home):
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        assert main([*TINY, "method=maskclr", "run_dir=attentive"]) == 0
    return home / "attentive"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["kind=attention"], "attention.png"),
        (["kind=attention", "clip=1", "output=a.gif", "colours=released"], "a.gif"),
        (["kind=pathways", "max_clips=10"], "pathways.png"),
    ],
)
def test_pictures_of_attention(skelact_run, run, capsys, options, name):
    assert skelact_run("plot", f"checkpoint={run}", "accelerator=cpu", *options, tiny=False) == 0
    (written,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith((".gif", ".png"))]
    assert written.endswith(name)
    with Image.open(written) as picture:
        assert picture.size[0] > 300 and getattr(picture, "n_frames", 1) == (8 if name == "a.gif" else 1)


def test_a_baseline_shows_the_attention_of_its_encoder(run, monkeypatch, home):
    from skelact.engine.pictures import _importance
    from skelact.engine.run import load_run
    from skelact.methods.maskclr import MaskCLR

    monkeypatch.setenv("SKELACT_DATA", str(home / "data"))
    method, datamodule, _ = load_run(run)
    views, mask = method.eval().sample(next(datamodule.batches("test")))
    with torch.no_grad():
        one = _importance(method, views, mask, "run")
        monkeypatch.delattr(MaskCLR, "importance")
        other = _importance(method, views, mask, "run")
    assert torch.equal(one, other) and one.shape == views.shape[:-1]
    torch.testing.assert_close(one.sum(-1), torch.full_like(one[..., 0], 6.0))  # of six joints


@pytest.mark.parametrize(("kind", "told"), [("attention", "no attention to joints"), ("pathways", "one pathway only")])
def test_methods_without_say_so(skelact_run, trained, capsys, kind, told):
    assert skelact_run("plot", f"checkpoint={trained}", f"kind={kind}", "accelerator=cpu", tiny=False) == 2
    assert told in capsys.readouterr().err


def test_a_colouring_that_is_not_there(skelact_run, run, capsys):
    assert skelact_run("plot", f"checkpoint={run}", "kind=attention", "colours=rainbow", tiny=False) == 2
    assert "colours=rainbow" in capsys.readouterr().err
