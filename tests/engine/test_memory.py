"""Memory that is freed on a CPU stays with the process, unless its user says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from skelact.engine.memory import keep_freed_memory

STEPS = """
import resource, torch
from skelact.engine.memory import keep_freed_memory
kept = keep_freed_memory(torch.device("cpu")) if {keep} else False
def step():
    blocks = [torch.ones(2**19) for _ in range(50)]  # 2 MiB each
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(), step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")


def steps(keep: bool) -> tuple[str, int]:
    """Whether it was arranged, and pages that the third and fourth step touch for the first time."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    code, env = STEPS.format(keep=keep), {**clean, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    kept, faults = out.split()
    return kept, int(faults)


@glibc
def test_steps_find_the_memory_of_the_steps_before() -> None:
    pages = 2 * 50 * 2**21 // os.sysconf("SC_PAGE_SIZE")
    assert steps(keep=False)[1] > pages / 2
    kept, faults = steps(keep=True)
    assert kept == "True"
    assert faults < pages / 20


@pytest.mark.parametrize(
    "variable", ["MALLOC_TRIM_THRESHOLD_=100000", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=100000"]
)
def test_what_the_user_says_stands(variable, monkeypatch):
    monkeypatch.setenv(*variable.split("=", 1))
    assert not keep_freed_memory(torch.device("cpu"))


def test_a_process_on_another_device_is_left_alone() -> None:
    assert not keep_freed_memory(torch.device("cuda"))
