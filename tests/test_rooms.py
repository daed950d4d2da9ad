"""Rooms import only rooms on lower floors, and the ground floors none of the heavy frameworks."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import skelact

ROOT = Path(skelact.__file__).parent
FLOORS = {
    "cli": 6,
    "engine": 5, "benchmarks": 5,
    "protocols": 4, "interop": 4, "callbacks": 4,
    "methods": 3,
    "data": 2, "transforms": 2, "backbones": 2, "plots": 2, "plots_robustness": 2, "plots_missing": 2,
    "skeleton": 1, "clips": 1, "objectives": 1, "results": 1, "gathering": 1, "tables": 1, "tables_missing": 1,
    "errors": 0, "": 0,
}  # fmt: skip
# `skelact.load` is offered by the package itself, and draws are the random numbers of every floor.
EXCEPTIONS = {("", "engine"), ("benchmarks", "engine")}
HEAVY = {"pytorch_lightning", "hydra", "omegaconf", "wandb"}
FILES = sorted(p for p in ROOT.rglob("*.py") if "conf" not in p.relative_to(ROOT).parts[:1])


def room_of(path):
    part = path.relative_to(ROOT).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def imports(path):
    """(module, line) of every import, at the top or inside functions; imports for type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module, node.lineno
            if node.module == "skelact":
                yield from ((f"skelact.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} is a new room: give it a floor here and in docs/architecture.md"
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "skelact" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != room:
            allowed = FLOORS[parts[1]] < FLOORS[room] or (room, parts[1]) in EXCEPTIONS
            same = FLOORS[parts[1]] == FLOORS[room]
            assert allowed or same, f"{path}:{line}: {room} (floor {FLOORS[room]}) imports {module}"
        light = FLOORS[room] <= 2 and path.name not in ("datamodules.py", "multimodal.py")
        assert not (light and parts[0] in HEAVY), f"{path}:{line}: {room} imports {module}"
        assert FLOORS[room] >= 5 or parts[0] not in ("hydra", "omegaconf"), (
            f"{path}:{line}: only the engine knows Hydra"
        )


def test_the_walker_sees_a_wrong_import(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from skelact.engine import run\n    import wandb\n")
    assert {module for module, _ in imports(file)} == {"skelact.engine", "wandb"}


def test_no_file_has_grown_into_two_rooms():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_importing_skelact_is_cheap():
    code = (
        "import sys, time; begin = time.perf_counter(); import skelact; spent = time.perf_counter() - begin; "
        "heavy = {'torch', 'pytorch_lightning', 'hydra', 'wandb', 'matplotlib', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; print(spent)"
    )
    begin = time.perf_counter()
    spent = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert spent < 0.3 or spent < 0.5 * (time.perf_counter() - begin)  # the second: a machine that is very busy
