"""How fast a method trains here, and where the time goes.

The clips are made up and lie on the training device, so what is measured is the method: sampling and augmentation,
forward, backward, optimiser. Beside it stands the straightforward form of the same step: one clip after another
through sampling and augmentation, as a loader would do it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from skelact.clips import RaggedClips


def made_up_clips(
    count: int, persons: int, joints: int, channels: int, device: torch.device, seed: int = 0
) -> RaggedClips:
    """Clips of 60 to 180 frames of smooth random motion, `(F, M, V, C)` float32 on `device`."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(60, 181, (count,), generator=generator)
    total = int(length.sum())
    frames = torch.randn(total, persons, joints, channels, generator=generator).cumsum(0) * 0.01
    return RaggedClips(
        frames=frames,
        start=length.cumsum(0) - length,
        length=length,
        label=torch.zeros(count, dtype=torch.int64),
        index=torch.arange(count),
    ).to(device)


def peak_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large square matrix product, the machine's practical ceiling (2 FLOPs a multiply-add)."""
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    per_call = spent_by(lambda: torch.mm(a, b), device, seconds)
    return 2.0 * size**3 / per_call


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spent_by(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds a call takes, after a warm-up."""
    function()
    synchronise(device)
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(4 if device.type == "cuda" else 1):
            function()
            calls += 1
        synchronise(device)
    return (time.perf_counter() - begin) / calls


class Step:
    """One training step in its parts, with or without a clock between them."""

    parts: tuple[str, ...] = ()

    def __init__(self, method: Any, precision: str, device: torch.device) -> None:
        self.method, self.device = method, device
        optimizer = method.configure_optimizers()
        self.optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        self.autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, kind)) if kind is not None else contextlib.nullcontext
        )
        self.spent = dict.fromkeys(self.parts, 0.0)
        self.timed = False

    @contextlib.contextmanager
    def part(self, name: str) -> Any:
        """What is done inside counts as that part of the step."""
        if not self.timed:
            yield
            return
        synchronise(self.device)
        begin = time.perf_counter()
        yield
        synchronise(self.device)
        self.spent[name] += time.perf_counter() - begin

    def descend(self, loss: Tensor) -> None:
        """Backward and optimiser."""
        with self.part("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with self.part("optimiser"):
            self.optimizer.step()


class _SkeletonStep(Step):
    """On clips that lie on the device."""

    parts = ("data", "augmentation", "forward", "backward", "optimiser")

    def __init__(self, method: Any, clips: RaggedClips, batch_size: int, precision: str, device: torch.device) -> None:
        super().__init__(method, precision, device)
        self.clips, self.batch_size = clips, batch_size
        self.generator = torch.Generator().manual_seed(0)

    def batch(self) -> RaggedClips:
        rows = torch.randperm(len(self.clips), generator=self.generator)[: self.batch_size]
        return self.clips.select(rows.to(self.device))

    def __call__(self) -> Tensor:
        with self.part("data"):
            batch = self.batch()
        with self.part("augmentation"):
            views = self.method.views(batch)
        given = self.method.views
        self.method.views = lambda _: views  # the step shall use the views that were timed
        try:
            with self.part("forward"), self.autocast():
                loss = self.method.training_step(batch, 0)["loss"]
        finally:
            self.method.views = given
        self.descend(loss)
        return loss


def measure(config: Mapping[str, Any]) -> dict[str, Any]:
    """Time the training steps that a config describes.

    Args:
        config: resolved: `method`, `data` (for layout, persons, channels and batch size), `trainer` (for accelerator
            and precision), `frames`, `seconds`.

    Returns:
        Numbers by name; times in milliseconds a step.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from skelact.engine.build import build
    from skelact.engine.run import pick_device

    device, seconds = pick_device(config["trainer"]), float(config["seconds"])
    precision, data = str(config["trainer"].get("precision", "32-true")), config["data"]
    batch_size = int(data.get("batch_size") or 64)
    torch.manual_seed(int(config.get("seed", 0)))
    method = build(config["method"], "method").to(device).train()
    joints = method.layout.num_joints
    clips = made_up_clips(max(4 * batch_size, 256), int(data["persons"]), joints, int(data["channels"]), device)
    step = _SkeletonStep(method, clips, batch_size, precision, device)

    whole = spent_by(step, device, seconds)
    step.timed, steps = True, max(3, int(seconds / 2 / whole))
    for _ in range(steps):
        step()
    parts = {name: spent / steps for name, spent in step.spent.items()}
    step.timed = False
    with FlopCounterMode(display=False) as counter:
        step()
    flops = float(counter.get_total_flops())
    dtype = torch.float32 if precision.startswith("32") else torch.bfloat16
    peak = peak_matmul_flops(device, dtype, min(seconds, 2.0))
    batch = step.batch()
    ones = [batch.select(batch.index.new_tensor([i])) for i in range(8)]
    singly = spent_by(lambda: [method.views(one) for one in ones], device, seconds / 5) / 8
    numbers: dict[str, Any] = {
        "method": type(method).__name__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": precision,
        "parameters, millions": sum(p.numel() for p in method.parameters()) / 1e6,
        "batch": batch_size,
        "clips/s": batch_size / whole,
        "step, ms": 1e3 * whole,
    }
    numbers |= _straightforward(method, step, device, seconds)
    numbers |= {f"  {name}, ms": 1e3 * value for name, value in parts.items()}
    return numbers | {
        "waiting for data, % of the time": 100 * parts["data"] / sum(parts.values()),
        "FLOPs a step, G": flops / 1e9,
        "achieved GFLOP/s": flops / whole / 1e9,
        "peak matrix product GFLOP/s": peak / 1e9,
        "share of the peak, %": 100 * flops / whole / peak,
        "augmentation, clips/s": batch_size / parts["augmentation"],
        "augmentation one clip at a time, clips/s": 1.0 / singly,
    }


def _straightforward(method: Any, step: _SkeletonStep, device: torch.device, seconds: float) -> dict[str, float]:
    """The same step written down plainly, given its views; nothing where a method has no such form."""
    from skelact.methods.umurl import UmURL

    if not isinstance(method, UmURL):
        return {}
    from skelact.benchmarks.straightforward.umurl import StraightforwardUmURL

    batch = step.batch()
    views = method.views(batch)
    plain = StraightforwardUmURL(method).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-4, weight_decay=1e-5)

    def plain_step() -> None:
        with step.autocast():
            loss = plain.loss(batch, views)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return {"straightforward step without augmentation, ms": 1e3 * spent_by(plain_step, device, seconds)}
