"""Submit to SLURM: one job array for all runs with equal resources, through submitit. Torch-free."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import scheduler
from bench.errors import BadInput
from bench.jobs import Job, JobFolders, Spot
from bench.places import Places
from bench.resources import Resources
from bench.runs import RunFolder
from bench.site import SlurmSite, slurm_site
from bench.submissions import latest
from bench.task import Task

#: submitit gives up after so many time-outs, and takes every signal under a short limit for one; ours never do
TIMEOUTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Array:
    """Jobs with equal resources, and behind the same runs, that are submitted together."""

    resources: Resources
    jobs: tuple[Job, ...]
    after: tuple[str, ...] = ()         # train ids


def arrays(jobs: Sequence[Job]) -> list[Array]:
    """Grouped by resources and by what they wait for, in the order given; no longer than this cluster lets an array be."""
    groups: dict[tuple[Resources, tuple[str, ...]], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.resources, job.after), []).append(job)
    most = scheduler.longest_array()
    return [Array(resources, tuple(group[i : i + most]), after) for (resources, after), group in groups.items()
            for i in range(0, len(group), most)]


def behind(after: Sequence[str], handed: Mapping[str, str], places: Places) -> dict[str, str]:
    """sbatch's options for jobs that begin from these runs' weights: they start once those jobs have succeeded, and leave the
    queue where one has not. `handed`: train id -> job, of what was submitted just now; others are looked up."""
    jobs = [handed[train_id] for train_id in after if train_id in handed]
    elsewhere = [ticket.job for train_id in after if train_id not in handed
                 and (found := latest(RunFolder(places.runs, train_id))) is not None
                 and (ticket := found.ticket) is not None and ticket.launcher == "slurm" and ticket.job is not None]
    jobs += [job for job, status in (scheduler.ask(elsewhere) or {}).items() if not status.ended]
    return {"dependency": "afterok:" + ":".join(jobs), "kill-on-invalid-dep": "yes"} if jobs else {}


def parameters(resources: Resources, site: SlurmSite, at_once: int) -> dict[str, Any]:
    """What submitit is told, of submitit.SlurmExecutor.update_parameters."""
    wanted: dict[str, Any] = {
        "job_name": "bench", "time": max(1, math.ceil(resources.hours * 60)), "nodes": resources.nodes,
        "ntasks_per_node": resources.per_node, "cpus_per_task": resources.cpus, "array_parallelism": at_once,
        "signal_delay_s": site.signal_seconds, "stderr_to_stdout": True,
        # One dead process ends the job, else the others wait for it till the time limit. Since 22.05 srun does not
        # take over sbatch's --cpus-per-task.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus}"],
        "additional_parameters": {"requeue": True, **site.options()},
    }
    if resources.gpus:
        kind = f"{site.gpu_type}:" if site.gpu_type else ""
        if site.gpu_option == "gres":
            wanted["gres"] = f"gpu:{kind}{resources.gpus}"
        else:
            wanted["gpus_per_node"] = f"{kind}{resources.gpus}"
    if resources.memory_gb:
        wanted["mem"] = f"{math.ceil(resources.memory_gb * 1024)}M"
    if site.setup:
        wanted["setup"] = list(site.setup)
    return wanted | {key: value for key in ("partition", "account", "qos", "constraint")
                     if (value := getattr(site, key)) is not None}


def scripts(jobs: Sequence[Job], places: Places, at_once: int | None) -> list[str]:
    """The exact sbatch script of each array that `submit` would submit now; only its folder's name has yet to be drawn."""
    import submitit

    class Unchecked(submitit.SlurmExecutor):
        """Also where SLURM is not installed."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    texts = []
    site = slurm_site()
    for array in arrays(jobs):
        executor = Unchecked(places.runs / "_jobs" / "JOBS" / "%j", max_num_timeout=TIMEOUTS)
        executor.update_parameters(**parameters(array.resources, site, at_once or site.max_jobs))
        if len(array.jobs) > 1:
            executor.parameters["map_count"] = len(array.jobs)
        texts.append(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return texts


def submit(
    jobs: Sequence[Job], places: Places, at_once: int | None, target: str, submitted: dict[str, Any],
) -> Iterator[tuple[Job, Spot]]:
    """Submit, and say where each job is as soon as its array has been accepted.

    Raises BadInput in SLURM's own words where it refuses; what was accepted before that has been said already.
    """
    import submitit

    site, folders, cluster = slurm_site(), JobFolders(places.runs), scheduler.cluster_name()
    handed: dict[str, str] = {}
    for array in arrays(jobs):
        folder = folders.new()
        tasks = [Task(target, job.run_files, places, "slurm", submitted) for job in array.jobs]
        try:
            with _outside_of_jobs():
                executor = submitit.SlurmExecutor(folder / "%j", max_num_timeout=TIMEOUTS)
                wanted = parameters(array.resources, site, at_once or site.max_jobs)
                wanted["additional_parameters"] |= behind(array.after, handed, places)
                executor.update_parameters(**wanted)
                found = executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, ValueError, OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)           # pickles of jobs that never were
            raise BadInput(f"SLURM refused the jobs: {_complaint(error)}") from error
        for job, one in zip(array.jobs, found, strict=True):
            log = os.path.relpath(one.paths.stdout, places.runs)
            handed |= dict.fromkeys(job.train_ids, one.job_id)
            yield job, Spot(launcher="slurm", cluster=cluster, job=one.job_id, log=log)


def _complaint(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines) or scheduler.last_line(str(error))


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Submitted from inside a job (an interactive one), ours must not inherit its SLURM_* variables."""
    inherited = {k: v for k, v in os.environ.items()
                 if k.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and k not in ("SLURM_CONF", "SUBMITIT_LOG_LEVEL")}
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)
