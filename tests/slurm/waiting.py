"""Asking the test cluster about its jobs, and waiting for what they should come to."""

from __future__ import annotations

import subprocess

from commands import until

__all__ = ["queued", "release", "sacct_state", "show", "slurm", "squeue_state", "submit", "until"]


def slurm(*command: str) -> str:
    """What one of SLURM's programs prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def submit(script: str, *options: str) -> str:
    """A script of bash, by sbatch; its job id. The output goes nowhere unless an option says so."""
    output = () if any(o.startswith("--output") for o in options) else ("--output=/dev/null",)
    return slurm("sbatch", "--parsable", *output, *options, "--wrap", script)


def squeue_state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED, ...; "" when SLURM's controller knows it no more. Up to date at any time."""
    done = subprocess.run(["squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job], capture_output=True, text=True,
                          timeout=30)
    return "" if "Invalid job id" in done.stderr else done.stdout.strip()


def sacct_state(job: str) -> str:
    """As the accounting has it, a second or two late; "" for one that it does not know (yet)."""
    lines = slurm("sacct", "-X", "-n", "-P", "-o", "State", "-j", job).splitlines()
    return lines[-1] if lines else ""


def show(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`."""
    words = slurm("scontrol", "-o", "show", "job", job).split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def release(job: str) -> None:
    """A job that was queued again need not wait out its hold; but two seconds of it.

    The node remembers the second in which it ended the job, and fails one with a permission as old as that
    ("Job credential revoked").
    """
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+2")


def queued() -> list[str]:
    """Every job and array element that is not over."""
    return slurm("squeue", "-h", "-r", "-o", "%i").split()
