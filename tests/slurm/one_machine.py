# SPDX-License-Identifier: Apache-2.0
"""A Slurm of one machine, set up under a folder of its own by any user, from Debian's slurm-wlm and munge.

``python one_machine.py FOLDER`` starts one, prints its ``SLURM_CONF``, and stops it on Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
MinJobAge=3600
MessageTimeout=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_program() -> str | None:
    """A program that a Slurm of one's own needs and that is not there."""
    return next((name for name in PROGRAMS if shutil.which(name, path=PATH) is None), None)


def running_slurm() -> bool:
    """Whether a Slurm answers already, as on a cluster."""
    if shutil.which("sinfo") is None:
        return False
    answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False, timeout=60)
    return answer.returncode == 0 and bool(answer.stdout.strip())


@contextmanager
def any_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Variables with which Slurm's commands work: those of the Slurm that answers already, else of one's own.

    Raises
    ------
    RuntimeError
        A program is missing, or a daemon does not start.
    """
    if running_slurm():
        yield {}
        return
    missing = missing_program()
    if missing:
        raise RuntimeError(f"{missing} is not installed (Debian: apt install slurm-wlm munge)")
    with one_machine(folder) as conf:
        yield {"SLURM_CONF": str(conf), "PATH": PATH}


@contextmanager
def one_machine(folder: Path, memory: int = 8000) -> Iterator[Path]:
    """Start munged, slurmctld and slurmd with two processors, and stop them at the end.

    Parameters
    ----------
    folder : Path
        Empty; keys, states, spools and logs go here.
    memory : int
        MB that jobs may ask for.

    Yields
    ------
    Path
        What ``SLURM_CONF`` must be set to.
    """
    # munged refuses keys that others could read, and sockets that nobody but its user can reach.
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            memory=memory,
            user=_user(),
            port=_free_port(),
            node_port=_free_port(),
        ),
        encoding="ascii",
    )
    environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(conf)}
    started = []
    try:
        for command in (
            [
                "munged",
                "--foreground",
                "--force",
                f"--socket={folder}/munge.socket",
                f"--key-file={key}",
                f"--pid-file={folder}/munged.pid",
                f"--log-file={folder}/munged.log",
                f"--seed-file={folder}/munged.seed",
            ],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D"],
        ):
            with open(folder / f"{command[0]}.out", "w", encoding="utf-8") as log:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            _wait(lambda: (folder / "munge.socket").exists(), started[-1], folder)
        _wait(lambda: "idle" in _ask(["sinfo", "-h", "-o", "%T"], environment), started[-1], folder)
        yield conf
    finally:
        _ask(["scancel", "--user", _user()], environment)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(ready, process: subprocess.Popen, folder: Path, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > limit:
            name = Path(process.args[0]).name
            said = (folder / f"{name}.out").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{name} did not start:\n{said}")
        time.sleep(0.2)


def _ask(command: list[str], environment) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60).stdout


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), one_machine(Path(sys.argv[1]).absolute()) as setting:
        print(f"export SLURM_CONF={setting}", flush=True)
        signal.pause()
