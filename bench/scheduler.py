"""What SLURM says about jobs: squeue first, which knows at once, then sacct, which trails by seconds. Torch-free.

Every answer is advice. What a run's folder says (a record, a beating lease) always wins; see bench/plan.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
PING_WITHIN = 5.0               # seconds SLURM's controller has to answer a ping
ASK_WITHIN = 30.0               # seconds for a list of jobs; a busy controller may need some
SILENCE_HOLDS = 5.0             # seconds for which a controller that was found down is not asked again
CHUNK = 500                     # ids in one command line

#: states of a job that will still do something; in squeue only, since accounting may lag behind
PENDING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "PREEMPTED", "NODE_FAIL",
           "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
#: states that sacct gives a job that has ended (PREEMPTED and NODE_FAIL only where it was not requeued)
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
         "REVOKED")

WORDS = {
    "OUT_OF_MEMORY": "it needed more memory than it was given (raise resources.memory_gb)",
    "TIMEOUT": "it reached its time limit and could not be requeued in time",
    "NODE_FAIL": "its node failed", "BOOT_FAIL": "its node did not boot", "DEADLINE": "it reached its deadline",
    "PREEMPTED": "it was preempted and not requeued",
}


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the scheduler says about one job or array element."""

    state: str                  # SLURM's word, without what follows it; "" where it knows nothing of the job
    queued: bool                # squeue lists it
    reason: str = ""            # why it waits, in SLURM's words
    exit_code: str = ""         # sacct's "code:signal"
    restarts: int = 0           # how often it was requeued
    over_since: float | None = None     # seconds since 1970, from accounting; None: not over, or not accounted for yet

    @property
    def pending(self) -> bool:
        return self.queued and self.state in PENDING

    @property
    def running(self) -> bool:
        return self.queued and self.state in RUNNING

    @property
    def ended(self) -> bool:
        return not (self.pending or self.running)

    def why(self) -> str:
        """How it ended, in words."""
        if not self.state:
            return "the scheduler no longer knows it"
        if self.state in WORDS:
            return WORDS[self.state]
        code, _, number = self.exit_code.partition(":")
        killed = int(number or 0) if (number or "0").isdigit() else 0
        if not killed and code.isdigit() and int(code) > 128:
            killed = int(code) - 128                        # as a shell says it
        if killed:
            name = signal.Signals(killed).name if killed in set(signal.Signals) else f"signal {killed}"
            hint = " (from outside, or out of memory)" if killed == signal.SIGKILL else ""
            return f"its process was ended by {name}{hint}"
        return f"it ended as {self.state}" + (f" with exit code {code}" if code not in ("", "0") else "")


def trouble() -> str | None:
    """Why jobs cannot be submitted from here, or None if they can."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return "there is no sbatch here"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=PING_WITHIN)
    except subprocess.TimeoutExpired:
        return "sbatch is here, but the controller did not answer in time"
    except OSError as error:
        return f"scontrol cannot be run ({error.strerror})"
    if ping.returncode or "UP" not in ping.stdout.split():
        return f"sbatch is here, but the controller does not answer ({last_line(ping.stdout + ping.stderr)})"
    return None


_shown = ""                     # what `scontrol show config` printed, once it has
_down = -math.inf               # when the controller was last found down


def _answers() -> bool:
    """Whether the controller is up: a ping says so at once, where other commands try for many seconds."""
    global _down
    if time.monotonic() - _down < SILENCE_HOLDS:
        return False
    if " UP" in (_output(["scontrol", "ping"]) or ""):
        return True
    _down = time.monotonic()
    return False


def _config() -> str:
    global _shown
    if not _shown and _answers():
        _shown = _output(["scontrol", "show", "config"]) or ""
    return _shown


def configured() -> bool:
    """Whether this machine belongs to a cluster, be its controller up or down."""
    given = os.environ.get("SLURM_CONF")
    return any(Path(file).is_file() for file in ([given] if given else CONFIGURATIONS))


def cluster_name() -> str:
    """The cluster that commands of this process talk to, as its configuration names it; "" where none answers."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _config(), re.MULTILINE)
    return found[1] if found else ""


def longest_array() -> int:
    """How many elements a job array may have here: MaxArraySize; SLURM's default where none answers."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _config(), re.MULTILINE)
    return max(1, int(found[1]) if found else 1001)


def ask(jobs: Iterable[str]) -> dict[str, JobStatus] | None:
    """Status of jobs (`12`, `12_3`) by id, in one or two commands for all; None where nobody answers.

    A job that neither squeue nor sacct knows has the state "".
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    listed: dict[str, JobStatus] = {}
    answered = True
    for part in _chunks(_bases(wanted)):
        queue = _squeue(part)
        answered = answered and queue is not None
        listed |= queue or {}
    over: dict[str, JobStatus] = {}             # how jobs ended, with their exit codes
    for part in _chunks(_bases(job for job in wanted if job not in listed or not listed[job].queued)):
        over |= _sacct(part) or {}
    if not answered and not over:
        return None
    found = listed | {job: s for job, s in over.items() if not (job in listed and listed[job].queued)}
    return {job: found.get(job, JobStatus("", False)) for job in wanted if answered or job in found}


def cancel(jobs: Iterable[str]) -> str | None:
    """Cancel jobs or array elements; None, or why that failed. Unknown and ended ones are passed over."""
    for part in _chunks(list(dict.fromkeys(jobs))):
        try:
            done = subprocess.run(["scancel", "--quiet", *part], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode and "Invalid job id" not in done.stderr:
            return last_line(done.stderr)
    return None


def own_job() -> str | None:
    """The id of the SLURM job this process belongs to. Never an element's SLURM_JOB_ID: of one element that is the id of
    the whole array, and what is done to it is done to all."""
    env = os.environ
    if (array := env.get("SLURM_ARRAY_JOB_ID")) and (element := env.get("SLURM_ARRAY_TASK_ID")):
        return f"{array}_{element}"
    return env.get("SLURM_JOB_ID")


def own_state() -> str:
    """SLURM's word for the state of the job this process belongs to; "" where it does not answer.

    RUNNING while it may still decide for itself (also in the grace of a preemption); COMPLETING once SLURM has cancelled
    or requeued it.
    """
    found = re.search(r"\bJobState=(\S+)", _output(["scontrol", "show", "job", "-o", own_job() or ""]) or "")
    return found[1] if found else ""


def requeue() -> str | None:
    """Put the job this process belongs to back into the queue; None, or why that failed.

    Only to be called while `own_state` is RUNNING: it would also revive a job that its user has cancelled.
    """
    try:
        done = subprocess.run(["scontrol", "requeue", own_job() or ""], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else last_line(done.stderr + done.stdout)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"


def _squeue(bases: list[str]) -> dict[str, JobStatus] | None:
    """Also jobs that ended within the last minutes, while the controller keeps them."""
    if not _answers():
        return None
    columns = "ArrayJobID:|,ArrayTaskID:|,State:|,RestartCnt:|,Reason:|"
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(bases)}", f"--Format={columns}"]
    text, errors = _both(command)
    if text is None:
        return {} if "Invalid job id" in errors else None
    found = {}
    for line in text.splitlines():
        base, element, state, restarts, reason = (line.split("|") + [""] * 5)[:5]
        job = base if element == "N/A" else f"{base}_{element}"
        live = state in PENDING or state in RUNNING
        found[job] = JobStatus(state, live, "" if reason == "None" else reason, restarts=int(restarts or 0))
    return found


def _sacct(bases: list[str]) -> dict[str, JobStatus] | None:
    """Jobs that have ended; what accounting believes to be alive is left out, since it hears of an end last."""
    text, _ = _both(["sacct", "--noheader", "--parsable2", f"--jobs={','.join(bases)}",
                     "--format=JobID,State,ExitCode,End"])
    if text is None:
        return None
    found: dict[str, JobStatus] = {}
    for line in text.splitlines():
        job, state, code, end = (line.split("|") + [""] * 4)[:4]
        job, _, step = job.partition(".")
        state = state.partition(" ")[0]
        if not step and state in FINAL:
            with contextlib.suppress(ValueError):
                end = datetime.fromisoformat(end).timestamp()
            over = end if isinstance(end, float) else None
            found |= {one: JobStatus(state, False, exit_code=code, over_since=over) for one in _elements(job)}
        elif step == "0" and job in found and not code.endswith(":0"):
            found[job] = replace(found[job], exit_code=code)        # of our processes; the job has only srun's
    return found


def _elements(job: str) -> list[str]:
    """`12_[3-5%2]`, as pending elements of an array are listed together -> each of them."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if found is None:
        return [job]
    elements = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        elements += [f"{found[1]}_{i}" for i in range(int(first), int(last or first) + 1)]
    return elements


def _bases(jobs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _chunks(items: list[str]) -> list[list[str]]:
    return [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]


def _output(command: list[str]) -> str | None:
    return _both(command)[0]


def _both(command: list[str]) -> tuple[str | None, str]:
    """(what a command printed, its complaints); None for the first where it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_WITHIN)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return (done.stdout if done.returncode == 0 else None), done.stderr
