"""The `skelact` command: argument handling only.

`skelact [overrides]` runs an experiment; `skelact COMMAND [overrides]` runs one of the sub-commands. All of them are
Hydra applications, so `--help`, `--cfg job`, `-m` and completion behave as Hydra's users know them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

COMMANDS = ("prepare", "info", "benchmark", "plot", "predict", "results")
#: After Ctrl-C.
_CONTINUE = {
    "run": "; a training run continues with: skelact resume=RUN_DIR, a sweep with the same command, run_dir=FOLDER and "
    "skip_finished=true",
    "prepare": "; the same command goes on where this one stopped",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 1 failed, 2 the request cannot be carried out, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = _command(arguments)
    show = os.environ.get("SKELACT_TRACEBACK", "") not in ("", "0") or any(a.startswith("debug=") for a in arguments)
    try:
        return _dispatch(arguments)
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        print(f"\nskelact: interrupted{_CONTINUE.get(command, '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `skelact ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        from skelact.engine.messages import explain

        message = explain(error, arguments, "config" if command == "run" else command)
        if message is None or show:
            raise
        text, code = message
        print(f"skelact: {text}", file=sys.stderr)
        return code


def _command(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments and arguments[0] in COMMANDS else "run"


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("--version", "-V"):
        from skelact import __version__

        print(f"skelact {__version__}")
        return 0
    if arguments and arguments[0] == "results":
        from skelact.engine.report import results

        return results(arguments[1:])
    command = _command(arguments)
    arguments = arguments if command == "run" else arguments[1:]
    if command == "benchmark" and arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        arguments[0] = f"kind={arguments[0]}"
    several = ("method=actionmae", "method=multimodal")  # they are for several modalities, the usual data have one
    if command == "benchmark" and any(a in several for a in arguments) and not any(a[:5] == "data=" for a in arguments):
        arguments.append("data=hdm05_rendered")
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] and arguments[0][:1].isalpha():
        from skelact.engine.messages import unknown_command

        print(f"skelact: {unknown_command(arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    return _hydra(command, arguments)


def _hydra(command: str, arguments: list[str]) -> int:
    import hydra

    from skelact.engine.search_path import register

    register()
    if any(a in ("-h", "--help") for a in arguments):
        from skelact.engine.help import list_groups_of

        list_groups_of(command)
    task = _task(command)
    # Hydra's parser wants its flags before the overrides; people write `skelact seed=1,2 -m`.
    flags = [a for a in arguments if a in ("-m", "--multirun")]
    arguments = [*flags, *(a for a in arguments if a not in flags)]
    resume = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "")
    if command == "run" and resume not in ("", "null") and not any(a.startswith("run_dir=") for a in arguments):
        arguments = [*arguments, f"run_dir={resume}"]
    job = _Job(task)
    with _as_command_line(["skelact", *arguments]):
        name = "config" if command == "run" else command
        hydra.main(version_base="1.3", config_path="pkg://skelact.conf", config_name=name)(job)()
    if job.error is not None:
        raise job.error
    return job.result if command != "run" and isinstance(job.result, int) else 0


class _Job:
    """Keeps what a task returned or raised: Hydra would print the whole command line above the error.

    Not in a sweep: its jobs may run in other processes, and Hydra collects what they raise itself.
    """

    def __init__(self, task: Callable[[Any], Any]) -> None:
        self.task = task
        self.result: Any = None
        self.error: Exception | None = None
        self.__module__ = task.__module__  # Hydra asks where the task comes from

    def __call__(self, cfg: Any) -> Any:
        try:
            self.result = self.task(cfg)
        except Exception as error:
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            self.error = error
        return self.result


def _task(command: str) -> Callable[[Any], Any]:
    if command == "run":
        from skelact.engine.run import task

        return task
    from skelact.engine import commands

    return getattr(commands, command)


@contextmanager
def _as_command_line(argv: list[str]) -> Any:
    """Hydra reads sys.argv, and reports errors by exiting unless told to raise them."""
    old, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = old
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


if __name__ == "__main__":
    sys.exit(main())
