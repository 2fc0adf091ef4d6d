"""A training is killed at a random point and goes on in a new process: every bit is that of a training that nobody stopped."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pquant_fx.train.checkpoint import read_checkpoint
from tests import resumable
from tests.resumable import CONFIGS, EPOCHS, STEPS, differences, in_own_loop, with_fit

PROCESSES = multiprocessing.get_context("forkserver")  # children of a process that trained nothing and holds no state of ours
PROCESSES.set_forkserver_preload(["tests.resumable", "pquant_fx.api", "pquant_fx.train.fit", "torch._dynamo"])
RUNS: dict[str, Callable[..., None]] = {"fit": with_fit, "own_loop": in_own_loop}
CALLS = {"fit": EPOCHS * (STEPS + 1), "own_loop": EPOCHS * STEPS}  # of the loss; fit's validation is one
CHOICE = random.Random(2026)


def run(door: str, name: str, folder: Path, **kill: int) -> int | None:
    process = PROCESSES.Process(target=resumable.quietly, args=(RUNS[door], name, str(folder), *kill.values()))
    if "kill_write" in kill:
        process = PROCESSES.Process(target=resumable.quietly, args=(with_fit, name, str(folder), None, kill["kill_write"]))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """The last checkpoint of a training that nobody stopped, by door and name."""
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def ask(door: str, name: str) -> dict[str, Any]:
        if (door, name) not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            assert run(door, name, folder) == 0
            known[door, name] = read_checkpoint(folder / "run.pt")
        return known[door, name]

    return ask


def killed_and_resumed(door: str, name: str, folder: Path, at: int) -> dict[str, Any]:
    assert run(door, name, folder, kill_at=at) == -signal.SIGKILL
    assert run(door, name, folder) == 0
    return read_checkpoint(folder / "run.pt")


@pytest.mark.parametrize(("name", "door"), [(name, list(RUNS)[n % 2]) for n, name in enumerate(CONFIGS)])
def test_a_killed_training_continues_bit_for_bit(name, door, tmp_path, unbroken):
    expected, at = unbroken(door, name), CHOICE.randint(STEPS + 2, CALLS[door])
    got = killed_and_resumed(door, name, tmp_path, at)
    assert differences(expected, got) == []
    assert differences(expected["model"], got["model"] | {"head.bias": got["model"]["head.bias"] + 1}) == [".head.bias"]  # it can fail


def test_a_training_may_die_again_and_again_also_before_its_first_file(tmp_path, unbroken):
    for at in (2, STEPS + 3, STEPS + 3, 3, 2 * STEPS):
        assert run("fit", "magnitude", tmp_path, kill_at=at) == -signal.SIGKILL
    assert run("fit", "magnitude", tmp_path) == 0
    assert differences(unbroken("fit", "magnitude"), read_checkpoint(tmp_path / "run.pt")) == []


def test_the_old_file_stands_when_the_process_dies_while_it_writes_the_new_one(tmp_path, unbroken):
    assert run("fit", "fixed8", tmp_path, kill_write=3) == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "run.pt")["session"]["position"]["epoch"] == 2
    assert run("fit", "fixed8", tmp_path) == 0
    assert differences(unbroken("fit", "fixed8"), read_checkpoint(tmp_path / "run.pt")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hgq", "cs"])
def test_a_training_may_be_killed_from_outside_at_any_moment(name, tmp_path, unbroken):
    choice, codes = random.Random(name), []
    while not codes or codes[-1] != 0:
        process = PROCESSES.Process(target=resumable.quietly, args=(with_fit, name, str(tmp_path)))
        process.start()
        process.join(choice.uniform(0.5, 2.5) + 0.2 * len(codes))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert set(codes) <= {0, -signal.SIGKILL}
    assert differences(unbroken("fit", name), read_checkpoint(tmp_path / "run.pt")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_twenty_random_points(number, tmp_path, unbroken):
    choice = random.Random(number)
    name, door = list(CONFIGS)[number % len(CONFIGS)], choice.choice(list(RUNS))
    got = killed_and_resumed(door, name, tmp_path, choice.randint(1, CALLS[door]))
    assert differences(unbroken(door, name), got) == []
