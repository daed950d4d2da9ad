"""The one place where a config node becomes an object.

A config may travel inside a checkpoint that somebody downloaded, so a `_target_` is only followed when it names
something the library, or the user in code or environment, has said may be built. The config itself can never
extend that list.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, get_args, get_type_hints

from skelact.errors import SkelactError

_PREFIXES = [
    "skelact.backbones.",
    "skelact.callbacks.",
    "skelact.data.",
    "skelact.methods.",
    "skelact.protocols.",
    "skelact.skeleton.",
    "skelact.transforms.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.loggers.",
    "pytorch_lightning.plugins.",
    "pytorch_lightning.profilers.",
    "pytorch_lightning.strategies.",
    "pytorch_lightning.trainer.",
    "pytorch_lightning.Trainer",
    "timm.create_model",
    "timm.layers.",
    "timm.models.",
    "timm.optim.",
    "timm.scheduler.",
]


def allow(prefix: str) -> None:
    """Let configs build what lives under `prefix` (a package or module of your own), for this process.

    The environment variable `SKELACT_TARGETS` (names separated by commas) does the same for the command line, and
    a package that offers configs through the entry point group `skelact.conf` is allowed by being installed.
    """
    _PREFIXES.append(prefix if prefix.endswith(".") else prefix + ".")


def allowed_prefixes() -> tuple[str, ...]:
    """Everything a `_target_` may start with, here and now."""
    named = [name.strip() for name in os.environ.get("SKELACT_TARGETS", "").split(",") if name.strip()]
    return (*_PREFIXES, *(name.rstrip(".") + "." for name in (*named, *_installed())))


@functools.cache  # reads the metadata of every installed package, and is asked for each target
def _installed() -> tuple[str, ...]:
    return tuple(point.value.partition(":")[0].partition(".")[0] for point in entry_points(group="skelact.conf"))


def _permitted(name: str) -> bool:
    return any(name == prefix or name.startswith(prefix) for prefix in allowed_prefixes())


def locate(target: str, where: str = "config") -> Any:
    """The class or function that `target` names.

    Both the written path and the object's own home must be allowed: otherwise `skelact.methods.base.torch.load`
    would lead out of the house through an open window.

    Raises:
        SkelactError: not allowed, or no such thing.
    """
    if not _permitted(target):
        raise SkelactError(
            f"{where}: _target_ {target!r} is not among the packages that may be built; "
            f"if it is yours, name its package in the environment variable SKELACT_TARGETS"
        )
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise SkelactError(f"{where}: _target_ {target!r} was not found: {reason}") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not _permitted(home):
        raise SkelactError(f"{where}: _target_ {target!r} leads to {home!r}, which may not be built")
    return found


def check_targets(node: Any, where: str = "config") -> None:
    """Walk a plain config and refuse the first `_target_` that is not allowed."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            locate(str(node["_target_"]), where)
        for key, value in node.items():
            check_targets(value, f"{where}.{key}")
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            check_targets(value, f"{where}[{position}]")


def build(node: Mapping[str, Any], where: str = "config", **arguments: Any) -> Any:
    """Build the object a plain, resolved config node describes.

    Args:
        node: mapping with `_target_`; lists and mappings arrive at constructors as plain containers.
        where: the node's name for messages.
        arguments: further keyword arguments, handed over as they are (never copied, unlike Hydra's own).

    Raises:
        SkelactError: a target that is not allowed, or arguments that do not fit its constructor.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_targets(node, where)
    check_types(node, where)
    try:
        if node.get("_partial_"):
            return instantiate(dict(node), _convert_="all")
        return instantiate({**node, "_partial_": True}, _convert_="all")(**arguments)
    except InstantiationException as error:
        cause = _innermost(error)
        if isinstance(cause, SkelactError):
            raise cause from error
        if isinstance(cause, ValueError) or (isinstance(cause, TypeError) and "argument" in str(cause)):
            raise SkelactError(f"{where} ({_guilty(error, node)}): {cause}") from error
        raise
    except SkelactError:
        raise
    except ValueError as error:  # a constructor that refuses a value: which value is the config's business
        raise SkelactError(f"{where} ({node.get('_target_')}): {error}") from error
    except TypeError as error:
        if "argument" in str(error) and (_shallow(error) or _handed_on(error, node)):
            raise SkelactError(f"{where} ({node.get('_target_')}): {error}") from error
        raise


def blank(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's node without the weights that its backbone or encoders begin with: others follow, or none shall.

    Weights of a checkpoint of ours take their place, and what such a checkpoint says must neither open files nor ask
    other machines for them.
    """
    made = dict(method)
    if isinstance(backbone := made.get("backbone"), Mapping) and "pretrained" in backbone:
        made["backbone"] = {**backbone, "pretrained": None}
    if isinstance(encoders := made.get("encoders"), Mapping):
        made["pretrained"] = None
        made["encoders"] = {name: _random(node) for name, node in encoders.items()}
    return made


def _random(encoder: Mapping[str, Any]) -> dict[str, Any]:
    made = blank(encoder)
    return {**made, "pretrained": False} if "pretrained" in made else made


def released(config: Mapping[str, Any]) -> str | None:
    """The weights that a run's backbone or encoders begin with; one with a checkpoint begins with that."""
    method = config["method"]
    found = (method.get("backbone") or {}).get("pretrained") or ("encoders" in method and method.get("pretrained"))
    return None if config.get("checkpoint") else found or None


def check_types(node: Any, where: str = "config") -> None:
    """Walk a plain config and refuse a number, text or switch where the constructor says it takes another.

    Only what both sides make plain is judged: parameters annotated with nothing but int, float, bool, str and None.
    """
    if isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            check_types(value, f"{where}.{position}")
    if not isinstance(node, Mapping):
        return
    hints = _hints(locate(str(node["_target_"]), where)) if "_target_" in node else {}
    for key, value in node.items():
        wanted = hints.get(key, ())
        if wanted and isinstance(value, (int, float, bool, str, NoneType)) and not _fits(value, wanted):
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in wanted)
            raise SkelactError(f"{where}.{key}={value}: must be {names}, not {type(value).__name__}")
        check_types(value, f"{where}.{key}")


def _hints(target: Any) -> dict[str, tuple[type, ...]]:
    """Parameters that take nothing but plain scalars, and which; those of base classes too, where a class hands on."""
    hints: dict[str, Any] = {}
    for function in reversed(_constructors(target)):
        try:
            hints |= get_type_hints(function)
        except Exception:  # names that exist for type checkers only; then the constructor must speak for itself
            return {}
    kinds = {key: get_args(hint) or (hint,) for key, hint in hints.items() if key != "return"}
    return {key: some for key, some in kinds.items() if set(some) <= {int, float, bool, str, NoneType}}


def _constructors(target: Any) -> list[Any]:
    """A target's own constructor, then those of its bases for as long as each hands further options on."""
    if not isinstance(target, type):
        return [target]
    found: list[Any] = []
    for cls in target.__mro__:
        if "__init__" in vars(cls):
            found.append(inspect.getattr_static(cls, "__init__"))
            kinds = {p.kind for p in inspect.signature(found[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


def _fits(value: Any, wanted: tuple[type, ...]) -> bool:
    if isinstance(value, float) and value.is_integer() and int in wanted:
        return True
    return isinstance(value, wanted) or (isinstance(value, int) and float in wanted)


#: Entries of a data node that only `skelact prepare` builds.
PREPARE_ONLY = ("reader", "media")


def build_data(node: Mapping[str, Any]) -> Any:
    """The datamodule of a data node, without what is for `skelact prepare` only."""
    return build({key: value for key, value in node.items() if key not in PREPARE_ONLY}, "data")


def attach(datamodule: Any, method: Any) -> None:
    """Let data that a method's frozen encoder shall go over once (`data.cache_features=true`) know the method."""
    if hasattr(datamodule, "attach"):
        datamodule.attach(method)


def _guilty(error: BaseException, node: Mapping[str, Any]) -> str:
    """The target whose constructor failed: the node itself, or one inside it, as Hydra's message has it."""
    found = re.search(r"full_key: (\S+)", str(error))
    return f"{node.get('_target_')}" + (f", {found.group(1)}" if found else "")


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _handed_on(error: BaseException, node: Mapping[str, Any]) -> bool:
    """Whether an argument of the node was unknown to a base class, to which the target's constructor handed it on."""
    found = re.match(r"(\S+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    target = locate(str(node["_target_"]))
    bases = [base.__qualname__ for base in target.__mro__] if isinstance(target, type) else []
    return found is not None and found[1] in bases and found[2] in node


def _shallow(error: BaseException) -> bool:
    """Whether the call itself failed (wrong arguments), not something deeper in the constructor."""
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "hydra" in frames[-1] or frames[-1] == __file__
