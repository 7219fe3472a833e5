"""A run that is interrupted, killed or crippled ends with the bits of one that is not."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import small
import torch

import ensemble_sae
from ensemble_sae.engine.run_sweep import Interrupted
from ensemble_sae.run import Run


def opened(run: Path) -> Run:
    return ensemble_sae.load(run, signatures={"traps:Trapped": small.traps.Trapped})


def spring(monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setenv("TRAP", trap)


def test_one_or_two_workers_train_the_same_members(one_worker: Run, two_workers: Run) -> None:
    small.assert_close(two_workers, one_worker)
    one, two = small.states(one_worker), small.states(two_workers)
    parts = [set(part.members) for part in two_workers.checkpoints[-1].parts]
    assert any(part < small.SPLIT for part in parts), "the sweep should split a group"
    for member in one.keys() - small.SPLIT:
        for name, tensor in one[member].items():
            assert torch.equal(two[member][name], tensor), (member, name)


def test_sigint_in_the_middle_of_a_chunk(
    sweep: Path, tmp_path: Path, two_workers: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spring(monkeypatch, "SIGINT@57")
    with pytest.raises(Interrupted) as interruption:
        small.train(sweep, tmp_path / "run", "cpu:2")
    assert interruption.value.signal == signal.SIGINT
    assert opened(tmp_path / "run").status["status"] == "interrupted"
    (checkpoint,) = opened(tmp_path / "run").checkpoints
    assert any(part.position.batch for part in checkpoint.parts)
    spring(monkeypatch, "")
    found = small.train(sweep, tmp_path / "run", "cpu:2", resume=True)
    small.assert_same_bits(found, two_workers)


def test_with_another_number_of_workers(
    sweep: Path, tmp_path: Path, one_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, interrupted within a chunk; two, interrupted within a chunk; one to the end."""
    for step, devices, resume in ((20, "cpu:1", False), (41, "cpu:2", True)):
        spring(monkeypatch, f"SIGTERM@{step}")
        with pytest.raises(Interrupted):
            small.train(sweep, tmp_path / "run", devices, resume=resume)
    spring(monkeypatch, "")
    found = small.train(sweep, tmp_path / "run", resume=True)
    small.assert_close(found, one_worker)
    assert set(found.members["group"]) == set(one_worker.members["group"])


def test_sigterm_says_how_to_go_on_and_that_works(
    sweep: Path, tmp_path: Path, one_worker: Run
) -> None:
    run = tmp_path / "run"
    words = (sweep, "--devices", "cpu:1", "--threads", "1", "--run", run)
    process = small.command(*words, TRAP="SIGTERM@90")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert small.orphans(process.pid) == []
    (line,) = re.findall(r"python -m ensemble_sae\.big_sweep (.*)", said)
    process = small.command(*shlex.split(line))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert small.orphans(process.pid) == []
    small.assert_same_bits(opened(run), one_worker)


def test_kill_9_of_the_dispatcher_at_random_moments(
    sweep: Path, tmp_path: Path, two_workers: Run
) -> None:
    run, moments = tmp_path / "run", random.Random(3)
    words = (sweep, "--devices", "cpu:2", "--threads", "1", "--run", run)
    for attempt in range(2):
        step = moments.randrange(5, 60)
        resume = ["--resume"] if (run / "sweep.json").exists() else []
        process = small.command(*words, *resume, TRAP=f"SIGKILL@{step}", PACE_MS="2")
        said, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, (attempt, said)
        assert small.orphans(process.pid) == []
    found = small.train(sweep, run, "cpu:2", resume=True)
    small.assert_same_bits(found, two_workers)


def test_a_killed_worker_is_restarted_and_the_others_go_on(
    sweep: Path, tmp_path: Path, two_workers: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spring(monkeypatch, f"die@75@{tmp_path / 'once'}")
    watch = small.Watch()
    found = small.train(sweep, tmp_path / "run", "cpu:2", observer=watch)
    assert [words[0] for words in watch.events("worker_died")] == ["cpu:1"]
    small.assert_same_bits(found, two_workers)
    numbers = [number for number, _ in watch.events("round_done")]
    assert numbers == list(range(10)), "a replayed round is reported once"


def test_a_worker_dies_during_the_last_save(
    sweep: Path, tmp_path: Path, two_workers: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while a worker is dead: the save must wait for its replacement."""
    spring(monkeypatch, f"die@75@{tmp_path / 'once'}")
    watch = small.Watch(worker_died=lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        small.train(sweep, tmp_path / "run", "cpu:2", observer=watch)
    positions = {part.position for part in opened(tmp_path / "run").checkpoints[-1].parts}
    assert len(positions) > 1, "the other worker was ahead"
    found = small.train(sweep, tmp_path / "run", "cpu:2", resume=True)
    small.assert_same_bits(found, two_workers)


def test_interrupted_during_the_evaluation(sweep: Path, tmp_path: Path, two_workers: Run) -> None:
    fired: list[bool] = []

    def once() -> None:
        if not fired:
            fired.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        small.train(sweep, tmp_path / "run", "cpu:2", observer=small.Watch(evaluating=once))
    found = small.train(sweep, tmp_path / "run", "cpu:2", resume=True)
    small.assert_same_bits(found, two_workers)


def test_interrupted_before_the_first_step(sweep: Path, tmp_path: Path, one_worker: Run) -> None:
    """SIGTERM while the workers start; then a damaged checkpoint is passed over."""
    run = tmp_path / "run"
    watch = small.Watch(started=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        small.train(sweep, run, observer=watch)
    (checkpoint,) = opened(run).checkpoints
    assert checkpoint.step == 0
    damaged = run / "checkpoints" / "step-9999999999"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{", encoding="utf-8")
    watch = small.Watch()
    found = small.train(sweep, run, resume=True, observer=watch)
    assert "damaged" in watch.events("warning")[0][0]
    small.assert_same_bits(found, one_worker)


def test_a_second_sigint_ends_at_once(sweep: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    words = (sweep, "--devices", "cpu:2", "--threads", "1", "--run", tmp_path / "run")
    process = small.command(*words, TRAP=f"sleep@5@{once}")
    while not once.exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of the group
    time.sleep(1.0)
    assert process.poll() is None, "it waits for the step that sleeps"
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said
    assert small.orphans(process.pid) == []
