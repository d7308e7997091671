"""A SLURM cluster of our own on this machine, for tests: real daemons, pretend nodes and GPUs, gone afterwards.

    python tests/slurm_cluster.py run -- pytest tests/slurm     start, run the command with it, stop
    python tests/slurm_cluster.py start                         leave one running ...
    eval "$(python tests/slurm_cluster.py env)"                 ... and point this shell at it
    python tests/slurm_cluster.py status                        exit code 0 when it can take jobs
    python tests/slurm_cluster.py stop

It needs Debian's packages below, but neither systemd nor root, and writes to nothing but its own folder.
Partitions: `test` (the default; takes no part in preemption), `low` (preempted: jobs are told to end by SIGTERM, have
15 s, and are queued again) and `high` (preempts `low`). A job that is queued again waits 6 s at least.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import glob
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "BENCH_TEST_CLUSTER"         # holds the folder of the cluster that tests may use
NODE_VARIABLE = "BENCH_TEST_NODE"       # the name of the node whose daemon began a process; jobs do not inherit it
PATIENCE = 60.0                         # seconds for a daemon to answer: it takes one or two
REQUEUE_HOLD = 5                        # SLURM adds one, and takes less than 5 for a mistake (and then holds for 121)
CONTROL, ACCOUNTING, DATABASE, FIRST_NODE = range(4)        # ports, counted from the first
PROGRAMS = {"munge": "munged munge unmunge",
            "slurm-wlm": "slurmctld slurmd sbatch srun squeue sinfo scontrol scancel sacct sacctmgr",
            "slurmdbd": "slurmdbd",
            "mariadb-server": "mariadbd mariadb-install-db"}
PLUGIN = "slurm-wlm-mysql-plugin"
PLUGIN_PLACES = [f"/usr/{place}/accounting_storage_mysql.so" for place in ("lib/*/slurm*", "lib/slurm", "lib64/slurm")]
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
#: variables by which a shell, or a job of another cluster that we run in, would tell SLURM's programs what to do
FOREIGN = re.compile("(SLURM|SLURMD|SBATCH|SALLOC|SRUN|SQUEUE|SINFO|SACCT|SCANCEL|SCONTROL)_")
#: a database that nobody will miss: small, and it never waits for the disk
CARELESS = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync", "--skip-innodb-doublewrite"]

SLURM_CONF = """\
ClusterName=benchtest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire={requeue_hold}
StateSaveLocation={folder}/state/slurmctld
SlurmdSpoolDir={folder}/state/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
# the connection to slurmdbd does not look at AuthInfo: its "password" is the socket of munged
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/run/munge.sock
# nothing that needs systemd, control groups, MPI or mail
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
# cores are counted, memory is not (a job that names none would get a whole node's); the lines below are believed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
# quick, where a real cluster is thrifty
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
KillWait=5
CompleteWait=0
Waittime=0
InactiveLimit=0
MinJobAge=300
SlurmctldTimeout=60
SlurmdTimeout=60
# no id is ever given twice: who reads results by job id must not find those of an earlier cluster
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{gres}
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
{extra}
"""
NODE = ("NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1 "
        "CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}{gres} State=UNKNOWN")
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=accounting
"""
DATABASE_SQL = """\
CREATE DATABASE IF NOT EXISTS accounting;
CREATE OR REPLACE USER slurm@127.0.0.1 IDENTIFIED BY '{password}';
GRANT ALL ON accounting.* TO slurm@127.0.0.1;
"""


class ClusterError(Exception):
    """The cluster cannot do what was asked; one sentence."""


# -- processes ---------------------------------------------------------------------------------------------


def birth(pid: int) -> str | None:
    """When a process began, as the kernel counts; None when it is gone or only waits to be reaped."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]


def environments() -> Iterator[tuple[int, dict[str, str]]]:
    """(pid, variables it was started with) of all processes that we may look into."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            data = (entry / "environ").read_bytes()
        except OSError:
            continue
        pairs = (line.partition("=") for line in data.decode(errors="replace").split("\0") if "=" in line)
        yield int(entry.name), {name: value for name, _, value in pairs}


def true_within(seconds: float, true: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def missing_packages() -> list[str]:
    """Debian's packages whose programs are not on this machine."""
    missing = [package for package, programs in PROGRAMS.items()
               if not all(shutil.which(program, path=PATH) for program in programs.split())]
    if not any(glob.glob(place) for place in PLUGIN_PLACES):
        missing.append(PLUGIN)
    return missing


# -- the cluster -------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """One cluster in one folder. Every call looks at what runs now, so several processes may hold one."""

    folder: Path
    nodes: int = 2
    cpus: int = 4                       # of each node; may be more than there are
    gpus: int = 2                       # of each node; none is there
    port: int | None = None             # the first of three, and one per node; None: some that are free
    extra: list[str] = field(default_factory=list)      # lines of slurm.conf

    def __post_init__(self) -> None:
        self.folder = Path(self.folder).absolute()
        self._children: dict[int, subprocess.Popen] = {}

    @classmethod
    def attach(cls, folder: Path | str) -> Cluster:
        """The cluster that was started in a folder."""
        try:
            return cls(Path(folder), **json.loads((Path(folder) / "cluster.json").read_text()))
        except FileNotFoundError:
            raise ClusterError(f"no cluster was started in {folder}") from None

    @property
    def node_names(self) -> list[str]:
        """Addresses: SLURM takes them for names, and a job that meets at its first node can look them up."""
        return [f"127.0.1.{n + 1}" for n in range(self.nodes)]

    @property
    def daemons(self) -> list[str]:
        """In the order in which they start."""
        return ["munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd-{node}" for node in self.node_names)]

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "etc/slurm.conf"

    def environment(self) -> dict[str, str]:
        """Ours, pointing to this cluster and to no other."""
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
        return {**kept, "PATH": PATH, "SLURM_CONF": str(self.slurm_conf), VARIABLE: str(self.folder)}

    def ask(self, *command: str, seconds: float = 20.0, said: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's programs; exit code 124 when it takes too long."""
        try:
            return subprocess.run(command, env=self.environment(), capture_output=True, text=True, input=said or "",
                                  timeout=seconds)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer in {seconds:g} s")

    # start and stop

    def start(self) -> None:
        """Everything; where this very cluster runs already, what is missing of it."""
        if missing := missing_packages():
            raise ClusterError(f"these Debian packages are missing: {' '.join(missing)}")
        if self.running():
            saved = Cluster.attach(self.folder)
            self.port = self.port or saved.port
            if saved != self:
                raise ClusterError(f"the cluster in {self.folder} runs with other settings: stop it first")
        else:
            self._write_folder()
        for name in self.daemons:
            self._launch(name)
            if not name.startswith("slurmd-"):          # those wait for each other below
                self._wait(name)
        for node in self.node_names:
            self._wait(f"slurmd-{node}")

    def stop(self) -> None:
        """Jobs first, then daemons, the last one first. Processes that we did not start are never signalled."""
        if self.pid("slurmctld"):
            self.cancel_all()
        for name in reversed(self.daemons):
            if name.startswith("slurmd-"):
                self._signal(name, signal.SIGTERM)      # all at once
        for name in reversed(self.daemons):
            self.stop_daemon(name)
            if name == "slurmctld":
                self.kill_jobs(watchers=True)

    def start_daemon(self, name: str) -> None:
        """One of `daemons`; comes back when it answers."""
        self._launch(name)
        self._wait(name)

    def stop_daemon(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """One of `daemons`; comes back when it is gone. A stopped slurmd leaves its jobs running.

        slurmctld writes down what it knows every five seconds and when it is asked to end: one that is killed
        knows nothing of the last seconds when it is back, neither new jobs nor cancelled ones.
        """
        self._signal(name, how)
        if not true_within(15, lambda: not self.pid(name)):
            self._signal(name, signal.SIGKILL)
            true_within(5, lambda: not self.pid(name))
        self._remembered(name).unlink(missing_ok=True)

    def fail_node(self, node: str) -> None:
        """As if it lost power: its daemon and all of its jobs end at once, and the controller hears of it.

        `start_daemon` brings it back.
        """
        self.stop_daemon(f"slurmd-{node}", signal.SIGKILL)
        self.kill_jobs(node, watchers=True)
        told = self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=failed")
        if told.returncode:
            raise ClusterError(f"{node} is dead but not marked as down: {told.stderr.strip()}")

    # what runs

    def pid(self, name: str) -> int | None:
        """Of a daemon that we started and that still runs."""
        try:
            pid, began = self._remembered(name).read_text().split()
        except (OSError, ValueError):
            return None
        if child := self._children.get(int(pid)):
            child.poll()                                # reaps it
        return int(pid) if birth(int(pid)) == began else None

    def running(self) -> list[str]:
        """Daemons of the cluster in this folder, whatever its settings."""
        names = [path.stem for path in sorted((self.folder / "run").glob("*.started"))]
        return [name for name in names if self.pid(name)]

    def ready(self) -> bool:
        """Can it take jobs, on all nodes?"""
        return all(self._up(name) for name in self.daemons)

    def idle(self) -> bool:
        """Are there no jobs, and all nodes free?"""
        jobs = self.ask("squeue", "-h")
        return jobs.returncode == 0 and not jobs.stdout and set(self.node_states().values()) == {"idle"}

    def node_states(self) -> dict[str, str]:
        said = self.ask("sinfo", "-h", "-N", "-p", "test", "-o", "%N %T").stdout
        return {name: state for name, state in map(str.split, said.splitlines())}

    def cancel_all(self) -> bool:
        """Cancel all jobs and wait until they are gone; those that will not go are killed.

        Once is not enough: one that answers its cancellation by `scontrol requeue` is back in the queue.
        """
        began = time.monotonic()

        def none_left() -> bool:
            jobs = self.ask("squeue", "-h")
            if jobs.returncode == 0 and not jobs.stdout:
                return True
            self.ask("scancel", f"--user={getpass.getuser()}")
            if time.monotonic() - began > 1.5:
                self.kill_jobs()
            return False

        return true_within(20, none_left)

    def kill_jobs(self, node: str | None = None, watchers: bool = False) -> None:
        """SIGKILL for the processes of all jobs (on one node), and for SLURM's own that watch over them."""
        nodes = [node] if node else self.node_names
        daemons = [self.pid(name) for name in self.daemons]
        for pid, variables in environments():
            if variables.get("SLURM_CONF") != str(self.slurm_conf) or pid in daemons:
                continue
            if variables.get("SLURMD_NODENAME") in nodes or (watchers and variables.get(NODE_VARIABLE) in nodes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def last_words(self, name: str, lines: int = 20) -> str:
        """The end of a daemon's log."""
        for path in (self.folder / f"log/{name}.log", self.folder / f"log/{name}.out"):
            if path.exists() and (text := path.read_text(errors="replace").splitlines()):
                return "\n".join(text[-lines:])
        return ""

    # inside

    def _write_folder(self) -> None:
        if re.search(r"[\s#%,\[\]]", str(self.folder)) or len(str(self.folder)) > 80:
            raise ClusterError(f"{self.folder}: slurm.conf cannot hold such a folder; take a short one of plain letters")
        if self.folder.exists() and (self.folder.stat().st_uid != os.getuid() or (
                any(self.folder.iterdir()) and not (self.folder / "cluster.json").exists())):
            raise ClusterError(f"{self.folder} holds something else: it is no folder of an earlier cluster of yours")
        self.port = free_ports(self.port, FIRST_NODE + self.nodes)
        for name in ("etc", "run", "log", "state"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("etc", "run", "log", "state/slurmctld", *(f"state/{node}" for node in self.node_names)):
            (self.folder / name).mkdir(parents=True)
        settings = {name: value for name, value in asdict(self).items() if name != "folder"}
        (self.folder / "cluster.json").write_text(json.dumps(settings))

        host = socket.gethostname().partition(".")[0]
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 95 // 100
        nodes = [NODE.format(name=name, host=host, port=self.port + FIRST_NODE + n, cpus=self.cpus, memory=memory,
                             gres=f" Gres=gpu:{self.gpus}" if self.gpus else "")
                 for n, name in enumerate(self.node_names)]
        values = {"folder": self.folder, "host": host, "user": getpass.getuser(), "control": self.port + CONTROL,
                  "accounting": self.port + ACCOUNTING, "database": self.port + DATABASE,
                  "requeue_hold": REQUEUE_HOLD, "first_job": 1000 + int(time.time()) % 50_000_000,
                  "gres": "GresTypes=gpu" if self.gpus else "", "nodes": "\n".join(nodes),
                  "extra": "\n".join(self.extra), "password": secrets.token_hex(16)}
        etc = self.folder / "etc"
        self.slurm_conf.write_text(SLURM_CONF.format(**values))
        gpus = [etc / f"gpu{n}" for n in range(self.gpus)]
        for gpu in gpus:
            gpu.symlink_to("/dev/null")                 # SLURM insists on a device
        (etc / "gres.conf").write_text("AutoDetect=off\n" + "".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        for name, text in {"slurmdbd.conf": SLURMDBD_CONF.format(**values), "database.sql": DATABASE_SQL.format(**values),
                           "munge.key": secrets.token_hex(64)}.items():
            (etc / name).touch(mode=0o600)
            (etc / name).write_text(text)
        # a line that it cannot read is fatal to each of SLURM's programs, so ask the quickest one
        said = self.ask("scontrol", "ping")
        if bad := [line for line in said.stderr.splitlines() if re.search("fatal|pars", line, re.I)]:
            raise ClusterError(f"SLURM refuses slurm.conf: {bad[0]}")

    def _command(self, name: str) -> list[str]:
        d = self.folder
        if name.startswith("slurmd-"):
            return ["slurmd", "-D", "-N", name.removeprefix("slurmd-")]
        return {
            "munged": ["munged", "--foreground", "--force", f"--socket={d}/run/munge.sock", f"--key-file={d}/etc/munge.key",
                       f"--log-file={d}/log/munged.log", f"--pid-file={d}/run/munged.pid",
                       f"--seed-file={d}/state/munged.seed"],
            "mariadbd": ["mariadbd", "--no-defaults", *self._as_root(), f"--datadir={d}/state/database",
                         f"--socket={d}/run/mariadbd.sock", f"--pid-file={d}/run/mariadbd.pid", "--bind-address=127.0.0.1",
                         f"--port={self._port(DATABASE)}", "--skip-name-resolve", "--innodb-lock-wait-timeout=900",
                         f"--init-file={d}/etc/database.sql", *CARELESS],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D", "-i"],
        }[name]

    def _as_root(self) -> list[str]:
        return ["--user=root"] if os.getuid() == 0 else []

    def _port(self, which: int) -> int:
        assert self.port is not None
        return self.port + which

    def _remembered(self, name: str) -> Path:
        return self.folder / f"run/{name}.started"

    def _launch(self, name: str) -> None:
        if self.pid(name):
            return
        if name == "mariadbd" and not (self.folder / "state/database").exists():
            made = self.ask("mariadb-install-db", "--no-defaults", f"--datadir={self.folder}/state/database",
                            "--skip-test-db", *self._as_root(), *CARELESS, seconds=120)
            (self.folder / "log/mariadb-install.out").write_text(made.stdout + made.stderr)
            if made.returncode:
                raise ClusterError(f"mariadb-install-db failed, see {self.folder}/log/mariadb-install.out")
        port = {"mariadbd": DATABASE, "slurmdbd": ACCOUNTING, "slurmctld": CONTROL}.get(name)
        if name.startswith("slurmd-"):
            port = FIRST_NODE + self.node_names.index(name.removeprefix("slurmd-"))
        if port is not None:
            free_ports(self._port(port), 1)
        variables = {**self.environment(), NODE_VARIABLE: name.partition("-")[2]}
        with open(self.folder / f"log/{name}.out", "ab") as out:
            child = subprocess.Popen(self._command(name), env=variables, stdin=subprocess.DEVNULL, stdout=out,
                                     stderr=out, cwd=self.folder, start_new_session=True)
        self._children[child.pid] = child
        self._remembered(name).write_text(f"{child.pid} {birth(child.pid)}")

    def _signal(self, name: str, how: signal.Signals) -> None:
        if pid := self.pid(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def _wait(self, name: str) -> None:
        true_within(PATIENCE, lambda: self._up(name) or not self.pid(name))
        if not self.pid(name):
            words = self.last_words(name)
            bad = [line for line in words.splitlines() if re.search("fatal|error", line, re.I)]
            raise ClusterError(f"{name} ended by itself: {(bad or words.splitlines() or ['it said nothing'])[-1]}")
        if not self._up(name):
            raise ClusterError(f"{name} runs but did not answer in {PATIENCE:g} s, see {self.folder}/log")
        if name == "slurmdbd":                          # or slurmctld would be a stranger to it
            self.ask("sacctmgr", "-i", "add", "cluster", "benchtest")

    def _up(self, name: str) -> bool:
        if not self.pid(name):
            return False
        if name == "munged":
            stamp = self.ask("munge", "-n", "-S", f"{self.folder}/run/munge.sock")
            return not stamp.returncode and not self.ask("unmunge", "-S", f"{self.folder}/run/munge.sock",
                                                         said=stamp.stdout).returncode
        if name == "mariadbd":
            return listening(self._port(DATABASE))
        if name == "slurmdbd":
            return not self.ask("sacctmgr", "-n", "-i", "show", "cluster").returncode
        if name == "slurmctld":
            return " UP" in self.ask("scontrol", "ping").stdout
        node = name.removeprefix("slurmd-")
        return listening(self._port(FIRST_NODE + self.node_names.index(node))) and self.node_states().get(node) in (
            "idle", "mixed", "allocated", "completing")


def listening(port: int) -> bool:
    """Does anyone here listen on a port? Found without knocking, which would be noted in that program's log."""
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def free_ports(first: int | None, count: int) -> int:
    """The first of some ports in a row that nobody listens on. Below those that the kernel hands out by itself."""
    if first is not None:
        if busy := [port for port in range(first, first + count) if listening(port)]:
            raise ClusterError(f"port {busy[0]} is taken by another program")
        return first
    for _ in range(100):
        first = random.SystemRandom().randrange(12_000, 30_000)
        if not any(map(listening, range(first, first + count))):
            return first
    raise ClusterError(f"no {count} free ports in a row")


# -- the command -------------------------------------------------------------------------------------------


def usual_folder(suffix: str = "") -> Path:
    """In memory where there is room: making a database on a disk takes ten seconds."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 300e6
    return (memory if roomy else Path(tempfile.gettempdir())) / f"slurm-cluster-{os.getuid()}{suffix}"


def run(cluster: Cluster, command: list[str], throw_away: bool) -> int:
    """Start, run a command, stop whatever happens; the command's exit code. One that ran before is left running."""
    child: subprocess.Popen | None = None

    def pass_on(number: int, _: Any) -> None:
        if child is None:
            raise SystemExit(128 + number)              # while it starts: stop below
        if number != signal.SIGINT:                     # which a terminal sends to the command as well
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    code = 1
    was_running = cluster.running()
    try:
        start(cluster)
        child = subprocess.Popen(command, env=cluster.environment())
        code = child.wait()
        code = 128 - code if code < 0 else code
        if code:
            for name in filter(lambda name: name.startswith("slurm"), cluster.daemons):
                say(f"the end of {name}'s log:\n{cluster.last_words(name)}")
    except FileNotFoundError as error:
        say(f"{error.filename}: no such command")
        code = 127
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if not was_running:
            stop(cluster)
        if throw_away:
            shutil.rmtree(cluster.folder, ignore_errors=True)
    return code


def start(cluster: Cluster) -> None:
    began = time.monotonic()
    before = cluster.running()
    try:
        cluster.start()
    except BaseException:
        if not before:
            cluster.stop()
        raise
    say(f"{cluster.nodes} nodes of {cluster.cpus} CPUs and {cluster.gpus} GPUs are up after "
        f"{time.monotonic() - began:.1f} s, in {cluster.folder}, on ports from {cluster.port}")


def stop(cluster: Cluster) -> None:
    began = time.monotonic()
    cluster.stop()
    say(f"stopped after {time.monotonic() - began:.1f} s")


def status(cluster: Cluster) -> int:
    for name in cluster.daemons:
        pid = cluster.pid(name)
        print(f"{name}: {f'pid {pid}' if pid else 'not running'}")
    if cluster.pid("slurmctld"):
        print(cluster.ask("sinfo", "-N", "-l").stdout.strip())
    return 0 if cluster.ready() else 1


def exports(cluster: Cluster) -> str:
    foreign = sorted(name for name in os.environ if FOREIGN.match(name) and name != "SLURM_CONF")
    lines = [f"unset {' '.join(foreign)}"] if foreign else []
    return "\n".join([*lines, f"export SLURM_CONF={shlex.quote(str(cluster.slurm_conf))}",
                      f"export {VARIABLE}={shlex.quote(str(cluster.folder))}"])


def say(line: str) -> None:
    print(f"test cluster: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[end + 1:]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     usage="%(prog)s start|stop|status|env|missing|run [OPTION...] [-- COMMAND...]")
    parser.add_argument("what", choices=["start", "stop", "status", "env", "missing", "run"],
                        help="`missing` names Debian's packages that are not here")
    parser.add_argument("--folder", type=Path, help=f"default: ${VARIABLE}, or one of your own for temporary files")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=4, help="of each node; may be more than there are")
    parser.add_argument("--gpus", type=int, default=2, help="pretended ones of each node")
    parser.add_argument("--port", type=int, help="the first of three and one per node; default: some that are free")
    parser.add_argument("--extra", action="append", default=[], metavar="LINE", help="a line more in slurm.conf")
    options = parser.parse_args(arguments[:end])
    if bool(command) != (options.what == "run"):
        parser.error("`run` needs a command after `--`, and nothing else takes one")

    throw_away = options.what == "run" and options.folder is None
    folder = options.folder or (usual_folder(f"-{os.getpid()}") if throw_away else
                                Path(os.environ.get(VARIABLE) or usual_folder()))
    cluster = Cluster(folder, options.nodes, options.cpus, options.gpus, options.port, options.extra)
    try:
        if options.what == "missing":
            print(*missing_packages())
        elif options.what == "start":
            start(cluster)
        elif options.what == "run":
            return run(cluster, command, throw_away)
        else:
            cluster = Cluster.attach(folder)
            if options.what == "status":
                return status(cluster)
            stop(cluster) if options.what == "stop" else print(exports(cluster))
    except ClusterError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
