"""`trainer.compile`: the networks of a method compiled in place while they train, or not, with the reason.

A module names the methods that are worth it in `compiles` (see :class:`skelact.backbones.base.Encoder`). They are
replaced on the instance, as bound methods, so that names in state dicts stay, copies of a module call their own
weights, and copies that follow it (teachers) are compiled like it. What trains is compiled, what is evaluated is not:
validation, monitors and protocols see the numbers that they would see without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from skelact.errors import SkelactError


def regions(method: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules inside a method, and the names of their methods that are worth compiling."""
    for module in method.modules():
        for name in getattr(module, "compiles", ()):
            yield module, name


def compiling(mode: bool | str) -> list[pl.Callback]:
    """Callbacks of a trainer for its option `compile`."""
    return [Compiled(mode)] if mode else []


class Compiled(pl.Callback):
    """Compiles the regions of what is trained, from the start of the training, with its weights loaded, to its end.

    Where that fails the training goes on uncompiled with the same numbers, and says so once: before the first step
    where nothing can be compiled at all, in it where torch does not know how to compile one of the regions. A region is
    compiled as a whole, its gradient at once, so that nothing of it was done when that fails.

    Args:
        mode: True, or one of torch.compile's: `reduce-overhead` (CUDA graphs), `max-autotune`, ...
        backend: of torch.compile.

    Raises:
        SkelactError: torch has no such mode.
    """

    def __init__(self, mode: bool | str = True, backend: str = "inductor") -> None:
        known = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
        if mode is not True and mode not in known:
            raise SkelactError(f"trainer.compile={mode} is neither true, false nor one of {', '.join(known)}")
        self.mode, self.backend = mode, backend
        self._in_place: list[tuple[nn.Module, str]] = []
        self._told: set[str] = set()
        self._eager_backward: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the compiler, then put what it shall compile into place."""
        self.install(pl_module, trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What captured graphs wrote in the steps before may be overwritten, but for gradients that still add up."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            torch.compiler.cudagraph_mark_step_begin()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the method as it was."""
        self.remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the method as it was."""
        self.remove()

    def install(self, method: nn.Module, device: torch.device) -> None:
        """Have the regions of a method compiled when they are first called; nothing where there is no compiler."""
        torch._dynamo.reset()  # another training's graphs count against the limit of this one's
        try:
            self._compile(torch.sin)(torch.zeros(8, device=device))
        except Exception as error:  # torch names no class for the ways in which a compiler can be missing
            self._tell(f"nothing can be compiled here ({_reason(error)})")
            return
        self._eager_backward = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
        self._eager_backward.__enter__()
        made: dict[tuple[type, str], Callable[..., Any]] = {}
        for module, name in regions(method):
            key = type(module), name
            made[key] = made.get(key) or self._region(*key)
            setattr(module, name, MethodType(made[key], module))
            self._in_place.append((module, name))

    def remove(self) -> None:
        """Take what :meth:`install` put in place away."""
        while self._in_place:
            module, name = self._in_place.pop()
            delattr(module, name)
        if self._eager_backward is not None:
            self._eager_backward.__exit__(None, None, None)
            self._eager_backward = None

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] | None = None
        if self.backend == "inductor":
            mode = "default" if self.mode is True else self.mode
            options = dict(torch._inductor.list_mode_options(mode))
            # of an input whose size changes from batch to batch a graph would be captured for each size
            options["triton.cudagraph_skip_dynamic_graphs"] = True
        return torch.compile(function, fullgraph=True, backend=self.backend, options=options)

    def _region(self, kind: type[nn.Module], name: str) -> Callable[..., Any]:
        """A method that is compiled in training, until that fails."""
        plain = getattr(kind, name)
        compiled: list[Callable[..., Any]] = [self._compile(plain)]

        @functools.wraps(plain)
        def region(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            trains = module.training or torch.is_grad_enabled()
            if not compiled or not trains or torch.compiler.is_compiling():
                return plain(module, *args, **kwargs)
            try:
                return compiled[0](module, *args, **kwargs)
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                compiled.clear()
                self._tell(f"{kind.__name__}.{name} is not compiled ({_reason(error)})")
            return plain(module, *args, **kwargs)

        return region

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            rank_zero_warn(f"trainer.compile={self.mode}: {what}; the training goes on without", stacklevel=4)


def _reason(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
