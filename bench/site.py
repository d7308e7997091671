"""The habits of a cluster, from the user's file: they belong to a site, never to a suite. Torch-free.

    # ~/.config/tokenizer-bench/config.yaml
    slurm:
      partition: gpu
      account: vision
      extra: [--reservation=paper]
      setup: [module load cuda]
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.errors import BadInput
from bench.places import user_file, user_settings
from bench.registry import did_you_mean

#: sbatch options that say what a run needs (the suite's) or that the launcher sets itself
OURS = {
    "array": "--jobs bounds how many run at a time", "output": "logs lie beside the runs", "error": "logs lie beside the runs",
    "open-mode": "a requeued job continues its log", "nodes": "it is the suite's resources.nodes",
    "ntasks-per-node": "it is the suite's resources.processes", "ntasks": "it is the suite's resources.processes",
    "gpus-per-node": "it is the suite's resources.gpus; slurm.gpu_type names their kind",
    "gres": "it is the suite's resources.gpus; slurm.gpu_type names their kind", "cpus-per-task": "it is the suite's resources.cpus", "mem": "it is the suite's resources.memory_gb",
    "time": "it is the suite's resources.hours", "signal": "it is slurm.signal_seconds", "requeue": "it is always set",
    "no-requeue": "a run must be able to continue",
}


class SlurmSite(BaseModel):
    """What sbatch is told besides a run's resources."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: list[str] = Field(default=[], description="further sbatch options, each `--name=value` or `--name`")
    gpu_type: str | None = Field(default=None, description="a kind of GPU, as in --gpus-per-node=a100:2")
    gpu_option: Literal["gpus-per-node", "gres"] = Field(default="gpus-per-node", description="how this site wants GPUs asked for")
    setup: list[str] = Field(default=[], description="shell commands before the run starts")
    max_jobs: int = Field(default=64, ge=1, description="elements of a job array that run at a time; --jobs wins")
    signal_seconds: int = Field(
        default=120, ge=30, le=3600, description="how long before the time limit a run is told to save and requeue itself"
    )

    @field_validator("extra")
    @classmethod
    def _options(cls, extra: list[str]) -> list[str]:
        for option in extra:
            found = re.fullmatch(r"(?:#SBATCH\s+)?--([a-z][a-z0-9-]*)(?:=(\S.*))?", option)
            if found is None:
                raise ValueError(f"{option!r} is not an sbatch option; write --name=value or --name")
            if found[1] in OURS:
                raise ValueError(f"--{found[1]} cannot be set here: {OURS[found[1]]}")
        return extra

    def options(self) -> dict[str, str | bool]:
        """`extra` as a mapping from option to value; True for one without."""
        pairs = [option.removeprefix("#SBATCH").strip().removeprefix("--").partition("=") for option in self.extra]
        return {name: value if equals else True for name, equals, value in pairs}


def slurm_site() -> SlurmSite:
    """The `slurm:` part of the user's file. Raises BadInput naming file, key and value."""
    given = user_settings().get("slurm") or {}
    if not isinstance(given, dict):
        raise BadInput(f"{user_file()}: slurm = {given!r}: expected a mapping with {', '.join(SlurmSite.model_fields)}")
    try:
        return SlurmSite.model_validate(given)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False):
            key = ".".join(str(part) for part in one["loc"])
            if one["type"] == "extra_forbidden":
                lines.append(f"{user_file()}: slurm.{key}: no such key{did_you_mean(key, SlurmSite.model_fields)}; further "
                             "sbatch options go into slurm.extra")
            else:
                message = one["msg"].removeprefix("Value error, ")
                lines.append(f"{user_file()}: slurm.{key} = {one['input']!r}: {message[0].lower()}{message[1:]}")
        raise BadInput("\n".join(lines)) from None
