"""The Slurm scripts, run by bash with stand-ins for Slurm's commands: processes on this machine's CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from micro import micro_config
from nightly import at_night
from runs import ROOT, stats, weights, words

from training import train

SCRIPTS = ROOT / "training" / "slurm"
pytestmark = [
    at_night,
    pytest.mark.usefixtures("micro_preset"),
    pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="Slurm's scripts are bash's"),
]

# As slurmstepd: tasks of their own sessions, signals passed to each, and the highest exit status of all.
SRUN = """
import os, signal, subprocess, sys, time
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
tasks = []
for number in range(int(os.environ["SLURM_NTASKS"])):
    environment = os.environ | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    tasks.append(subprocess.Popen(words, env=environment, start_new_session=True))
    time.sleep(float(os.environ.get("BETWEEN_TASKS", 0)))
for each in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(each, lambda number, _: [task.send_signal(number) for task in tasks if task.poll() is None])
with open(os.environ["PIDS"], "w") as file:
    file.write(" ".join(str(each) for each in (os.getpid(), *(task.pid for task in tasks))))
status = [task.wait() for task in tasks]
sys.exit(max(128 - number if number < 0 else number for number in status))
"""
SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("127.0.0.1")
else:
    open(os.environ["PIDS"] + ".asked", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


class Slurm:
    """Jobs of the scripts, and the requests to Slurm's commands."""

    def __init__(self, folder: Path):
        self.pids, self.asked, self.log = folder / "pids", folder / "pids.asked", folder / "log"
        self.jobs: list[subprocess.Popen] = []

    def begin(self, script: str, arguments: list[str]) -> subprocess.Popen:
        with self.log.open("w") as log:
            words = ["bash", str(SCRIPTS / script), *arguments]
            self.jobs.append(subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
        return self.jobs[-1]

    def said(self) -> str:
        """The end of the last job's output."""
        return self.log.read_text(errors="replace")[-4000:]

    def wait_for(self, what: Callable[[], bool], seconds: float = 300) -> None:
        ends = time.monotonic() + seconds
        while not what():
            assert self.jobs[-1].poll() is None, self.said()
            assert time.monotonic() < ends, f"it did not come: {self.said()}"
            time.sleep(0.02)

    def end(self) -> None:
        """Leave no process behind, even if a test failed."""
        for job in self.jobs:
            for pid in (*_descendants(job.pid), job.pid):
                _kill(pid)
            job.wait()


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Slurm]:
    """Slurm's commands in the PATH, and the variables of a job with two tasks."""
    commands = tmp_path / "bin"
    commands.mkdir()
    torchrun = "from torch.distributed.run import main\nmain()"
    for name, code in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": torchrun}.items():
        (commands / name).write_text(f"#!{sys.executable}\n{code}")
    (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"')
    for path in commands.iterdir():
        path.chmod(0o755)
    slurm = Slurm(tmp_path)
    variables = {
        "SLURM_JOB_ID": str(_free_port() - 20000), "SLURM_JOB_NODELIST": "node", "SLURM_NTASKS": "2",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1", "PATH": f"{commands}:{os.environ['PATH']}",
        "PIDS": str(slurm.pids), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield slurm
    slurm.end()


def _free_port() -> int:
    """A port that the scripts choose for a job's number."""
    for port in range(20000 + os.getpid() % 10000, 40000):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [each for child in children for each in (child, *_descendants(child))]


def command(data: Path, folder: Path, steps: int, **changes) -> list[str]:
    """A run with a model from a file, since the processes do not know the tests' preset."""
    sizes = folder.with_suffix(".json")
    sizes.write_text(micro_config().to_json())
    given = {"sizes": sizes, "batch": 2, "global-batch": 4, "save-every": 10, "block": 4, "reuse": 8}
    return words(data, folder, steps=steps, images=4 * steps, **given | changes)


def steps_logged(folder: Path) -> int:
    path = folder / "stats.jsonl"
    return path.read_text().count('"gradient"') if path.exists() else 0


def test_a_job_saves_when_its_time_is_up_and_queues_itself_again(data, tmp_path, slurm):
    """Two processes; the second job continues as the same run in one process would, to the last bit."""
    folder, steps = tmp_path / "run", 60
    job = slurm.begin("requeue.sbatch", command(data, folder, steps))
    slurm.wait_for(lambda: steps_logged(folder) > 0)
    os.kill(int(slurm.pids.read_text().split()[0]), signal.SIGUSR1)
    assert job.wait(300) == 128 + signal.SIGUSR1, slurm.said()
    assert f"requeue {os.environ['SLURM_JOB_ID']}\n" == slurm.asked.read_text()
    done = steps_logged(folder)
    assert 0 < done < steps and "is the last complete state: the same command resumes" in slurm.said()

    alone = shutil.copytree(folder, tmp_path / "alone")
    job = slurm.begin("requeue.sbatch", command(data, folder, steps))
    assert job.wait(300) == 0, slurm.said()
    assert slurm.asked.read_text().count("requeue") == 1 and steps_logged(folder) == steps
    assert json.loads((folder / "options.json").read_text())["layout"] == {"processes": 2, "accumulate": 1, "batch": 2}

    train.main(command(data, alone, steps))
    one, two = ([line for line in stats(each) if "loss" in line] for each in (folder, alone))
    assert one == two
    first, second = (weights(each / "checkpoint.safetensors") for each in (folder, alone))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_job_that_fails_is_not_queued_again(data, tmp_path, slurm):
    job = slurm.begin("requeue.sbatch", [*command(data, tmp_path / "run", 4), "--distill-guidance", "2"])
    assert job.wait(300) == 2 and "--distill-guidance needs --init" in slurm.said()
    assert not slurm.asked.exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_a_run_outlives_a_node(data, tmp_path, slurm, monkeypatch):
    """Two nodes with one process each; one is lost, and the other continues alone with as many pictures per step."""
    folder, steps = tmp_path / "run", 60
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("PET_LOCAL_ADDR", "127.0.0.1")
    monkeypatch.setenv("BETWEEN_TASKS", "3")  # the first one holds the rendezvous
    monkeypatch.setenv("PET_RDZV_CONF", "last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=5")
    job = slurm.begin("elastic.sbatch", command(data, folder, steps))
    slurm.wait_for(lambda: any(folder.glob("state-*")))
    assert json.loads((folder / "options.json").read_text())["processes"] == 2
    lost = int(slurm.pids.read_text().split()[2])
    for pid in (lost, *_descendants(lost)):
        _kill(pid)
    job.wait(500)
    assert (folder / "checkpoint.safetensors").exists() and steps_logged(folder) == steps, slurm.said()
    options = json.loads((folder / "options.json").read_text())
    assert options["layout"] == {"processes": 1, "accumulate": 2, "batch": 2}
    assert options["begun"] == {"processes": 2, "accumulate": 1, "batch": 2, "images": 4 * steps}
    (text,) = {text for line in stats(folder) for text in line.get("goes_on", [])}
    assert text.startswith("processes x accumulate x batch are 1 x 2 x 2, and were 2 x 1 x 2 at its beginning")


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_the_scripts_are_whole(script):
    """bash can parse them, and their arguments reach the command unchanged, including spaces."""
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=False).returncode == 0
    assert text.startswith("#!/bin/bash\n") and '-m training.train "$@"' in text
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    first_command = next(index for index, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert directives and all(text.splitlines().index(line) < first_command for line in directives)  # else ignored
