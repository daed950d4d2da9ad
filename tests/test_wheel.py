"""The built wheel works from an empty directory, without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_everything(tmp_path):
    if not (ROOT / "pyproject.toml").exists() or shutil.which("git") is None:
        pytest.skip("needs the repository")
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    assert "skelact/conf/config.yaml" in names and "skelact/conf/experiment/umurl_hdm05.yaml" in names
    assert any(name.startswith("skelact/data/embedded/") and name.endswith(".npz") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(target),
        "SKELACT_DATA": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    code = (
        "import sys, skelact, skelact.conf; from skelact.cli import main; "
        f"assert skelact.__file__.startswith({str(target)!r}), skelact.__file__; "
        "assert skelact.conf.__path__[0].startswith(skelact.__path__[0]); sys.exit(main())"
    )
    options = ["experiment=umurl_hdm05", "trainer.max_steps=2", "protocols.retrieval.draws=2", "run_dir=run"]
    # -P and an empty folder: nothing of the repository is in reach
    command = [sys.executable, "-P", "-c", code, *options, "evaluate=[retrieval]"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "raw pose" in done.stdout and (empty / "run" / "results.json").is_file()
