"""A training step with a clock between its parts, and the straightforward form of it.

The clips are made up and lie on the training device, so what is measured is the method: batch, augmentation, forward,
backward, optimiser.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from skelact.benchmarks.straightforward import straightforward
from skelact.clips import RaggedClips
from skelact.errors import SkelactError

PARTS = ("data", "augmentation", "forward", "backward", "optimiser")
PAIRS = 0.18
"""Share of NTU RGB+D's clips that show two people."""
STAGES = ("cross_epoch", "mining_epoch", "msk_path_start_epoch")
"""Options of methods that say in which epoch their last stage begins."""

Numbers = dict[str, Any]


def made_up_clips(
    count: int, persons: int, joints: int, channels: int, device: torch.device, seed: int = 0, classes: int = 1
) -> RaggedClips:
    """Clips of 60 to 180 frames of smooth random motion, `(F, M, V, C)` float32 on `device`.

    Where there are several person slots, in all but NTU's share of pairs only the first person is there, as the mask
    says; labels are drawn at random.
    """
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(60, 181, (count,), generator=generator)
    total = int(length.sum())
    frames = torch.randn(total, persons, joints, channels, generator=generator).cumsum(0) * 0.01
    alone = torch.rand(count, generator=generator) >= PAIRS
    mask = torch.ones(total, persons, joints, dtype=torch.bool)
    mask[:, 1:] = ~alone.repeat_interleave(length)[:, None, None]
    return (
        RaggedClips(
            frames=frames * mask[..., None],
            start=length.cumsum(0) - length,
            length=length,
            label=torch.randint(classes, (count,), generator=generator),
            index=torch.arange(count),
            mask=mask if persons > 1 else None,
        )
        .counted()
        .to(device)
    )


def peak_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of a large square matrix product, the machine's practical ceiling (2 FLOPs a multiply-add)."""
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / min(times_of([lambda: torch.mm(a, b)], device, seconds, at_least=5)[0])


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_of(
    calls: list[Callable[[], Any]], device: torch.device, seconds: float, at_least: int = 3
) -> list[list[float]]:
    """Seconds of each call, repeated in turns for `seconds` after a warm-up: what else runs then meets all of them."""
    spent: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    begin = time.perf_counter()
    while len(spent[0]) < at_least or time.perf_counter() - begin < seconds:
        for call, times in zip(calls, spent, strict=True):
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            times.append(time.perf_counter() - start)
    return spent


def spread_of(times: list[float]) -> float:
    """Distance of the quartiles in percent of the median."""
    low, middle, high = quantiles(times, n=4)
    return 100 * (high - low) / middle


class Step:
    """One training step in its parts, with or without a clock between them.

    Args:
        method: what is trained, in training mode on `device`.
        batch_size: clips in a step.
        precision: as the trainer takes it.
        device: where.
    """

    def __init__(self, method: Any, batch_size: int, precision: str, device: torch.device) -> None:
        self.method, self.batch_size, self.precision, self.device = method, batch_size, precision, device
        optimizer = method.configure_optimizers()
        self.optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        self.products = kind or torch.float32  # what matrix products are made in
        self.autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, kind)) if kind is not None else contextlib.nullcontext
        )
        self.spent: dict[str, list[float]] = {name: [] for name in PARTS}
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
        self.spent[name].append(time.perf_counter() - begin)

    def batch(self) -> Any:
        """The clips of a step, as they come."""
        raise TypeError(f"{type(self).__name__} does not say where its clips come from")

    def given(self, batch: Any) -> tuple[Any, Any]:
        """The clips ready for the method, and its training views of them."""
        raise TypeError(f"{type(self).__name__} does not say how its clips are augmented")

    def loss(self, batch: Any, views: Any) -> Tensor:
        """The method's loss on these clips."""
        out = self.method.training_step(batch, 0)
        return out["loss"] if isinstance(out, Mapping) else out

    def descend(self, batch: Any, views: Any) -> None:
        """Forward, backward, optimiser."""
        torch.compiler.cudagraph_mark_step_begin()  # what captured graphs wrote before may be overwritten
        with self.part("forward"), self.autocast():
            loss = self.loss(batch, views)
        with self.part("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with self.part("optimiser"):
            self.optimizer.step()
            self.method.stepped()

    def __call__(self) -> None:
        """The whole step."""
        with self.part("data"):
            batch = self.batch()
        with self.part("augmentation"):
            batch, views = self.given(batch)
        self.descend(batch, views)


class SkeletonStep(Step):
    """On clips that lie on the device."""

    def __init__(self, method: Any, clips: RaggedClips, batch_size: int, precision: str, device: torch.device) -> None:
        super().__init__(method, batch_size, precision, device)
        people = clips.people_in_each()
        self.clips, self.lengths, self.people = clips, clips.length.cpu(), None if people is None else people.cpu()
        self.generator = torch.Generator().manual_seed(0)

    def batch(self) -> RaggedClips:
        """Clips drawn at random; integers alone are moved."""
        rows = torch.randperm(len(self.clips), generator=self.generator)[: self.batch_size]
        people = None if self.people is None else int(self.people[rows].sum())
        return self.clips.select(rows.to(self.device), int(self.lengths[rows].sum()), people)

    def given(self, batch: RaggedClips) -> tuple[RaggedClips, Any]:
        """The clips, and the method's own views."""
        return batch, self.method.views(batch)

    def loss(self, batch: RaggedClips, views: Any) -> Tensor:
        """The method's loss, which shall use the views that were timed."""
        own = self.method.views
        self.method.views = lambda _: views
        try:
            return super().loss(batch, views)
        finally:
            self.method.views = own


class StraightforwardStep:
    """The same step written down plainly, given its views.

    Args:
        step: what it stands beside; its weights are copied.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.form = step, straightforward(step.method).to(step.device).train()
        kind = type(step.optimizer)
        known = inspect.signature(kind).parameters  # AdamW's defaults hold one that it does not take
        options = {key: value for key, value in step.optimizer.defaults.items() if key in known}
        plain = {key: False for key in ("foreach", "fused") if key in options}
        self.optimizer = kind([p for p in self.form.parameters() if p.requires_grad], **{**options, **plain})

    def __call__(self, batch: Any, views: Any) -> None:
        """Forward, backward, optimiser."""
        with self.step.autocast():
            loss = self.form.loss(batch, views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.form.follow()


def peak_memory(call: Callable[[], Any], device: torch.device) -> float | None:
    """MB that a call takes at its peak; None where nothing says it.

    Allocated on a GPU; on a CPU by how much the resident set grows above what lies there before (Linux).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    from skelact.engine.memory import give_back_freed_memory

    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        call()
        return (resident("VmHWM") - before) / 1e3
    except OSError:
        return None


def resident(field: str, process: int | str = "self") -> int:
    """A field, in kB, of Linux's account of a process's memory: `VmRSS`, or `VmHWM` for its peak."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def device_words(device: torch.device) -> str:
    """A device as tables name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def build_method(config: Mapping[str, Any], device: torch.device) -> Any:
    """The configured method on a device, in its first or last stage, without a schedule: that counts a trainer's steps.

    Raises:
        SkelactError: another stage.
    """
    from skelact.engine.build import build

    node, stage = copy.deepcopy(dict(config["method"])) | {"scheduler": None}, config.get("stage", "last")
    if stage not in ("first", "last"):
        raise SkelactError(f"benchmark: stage={stage} is neither first nor last")
    if stage == "last":
        node |= {name: 0 for name in STAGES if name in node}
    torch.manual_seed(int(config.get("seed", 0)))
    return build(node, "method").to(device).train()


def precision_of(config: Mapping[str, Any]) -> str:
    """The trainer's precision."""
    return str(config["trainer"].get("precision", "32-true"))
