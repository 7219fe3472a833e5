"""The Slurm script of docs/cluster.md, with stand-ins for srun and scontrol."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from pages import ROOT, Page

from ensemble_sae import ChunkStore

SWEEP = """
[activations]
store = "data/mine"

[train]
batch_size = 64
epochs = 200
checkpoint_every = 20

[grid]
signature = ["tied", "untied"]
dict_ratio = 1
l1 = 1e-3
"""


def prepared(folder: Path) -> subprocess.Popen[bytes]:
    """Everything that the script needs in a folder; what starts it comes back."""
    text = Page(ROOT / "docs/cluster.md").text
    script = text.split("cat > sweep.sbatch <<'END'\n")[1].split("\nEND\n")[0]
    assert "--gpus 8" in script
    script = script.replace("--gpus 8", "--devices cpu:1 --threads 1").replace("offline", "off")
    (folder / "sweep.sbatch").write_text(script)
    (folder / "my_sweep.toml").write_text(SWEEP)
    rows = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
    ChunkStore.write(folder / "data/mine", rows, chunk_rows=256)
    (folder / "bin").mkdir()
    for name, does in {"srun": 'exec "$@"', "scontrol": 'echo "$@" >> queued'}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "bin" / name).chmod(0o755)
    return started(folder)


def started(folder: Path) -> subprocess.Popen[bytes]:
    places = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    path = os.pathsep.join(places)
    environment = {"PATH": path, "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
    return subprocess.Popen(
        ["bash", "sweep.sbatch"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )


def test_a_job_that_is_stopped_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "runs/my_sweep-1"
    job = prepared(tmp_path)
    try:
        until = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")) and job.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGTERM)  # the script, the step and its workers
        assert job.wait(120) == 143
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "queued").read_text() == "requeue 77\n"
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert started(tmp_path).wait(240) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    (signature,) = json.loads((run / "sweep.json").read_text())["sweep"]["grid"]
    assert re.search("untied", json.dumps(signature))
    assert (tmp_path / "queued").read_text() == "requeue 77\n", "a finished job is not queued again"
