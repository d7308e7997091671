"""What one run asks of a machine: in no identity, never part of the science. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Resources(BaseModel):
    """What one job gets, whichever launcher starts it; hashable, so that equal ones share a job array."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    gpus: int | None = Field(
        default=None, ge=0, description="GPUs of a run on each machine; left out: one where this machine has any, with slurm none")
    nodes: int = Field(default=1, ge=1, description="machines of a job; more than one needs slurm")
    processes: int | None = Field(
        default=None, ge=1, description="processes of a run on each machine; left out: one per GPU, else one")
    cpus: int = Field(default=1, ge=1, description="CPU cores of each process")
    memory_gb: float | None = Field(default=None, gt=0, description="memory; left out: what the site gives")
    hours: float = Field(default=24.0, gt=0, description="the scheduler's time limit; local jobs have none")
    pack: int = Field(default=1, ge=1, description="runs that one job runs one after another")

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Resources:
        if self.gpus and self.processes and self.processes > self.gpus:
            raise ValueError(f"{self.processes} processes cannot share {self.gpus} GPUs: one GPU each, or gpus: 0")
        return self

    @property
    def per_node(self) -> int:
        """Processes of a run on each machine."""
        return self.processes or max(1, self.gpus or 0)

    @property
    def world(self) -> int:
        """Processes of a run; they share each micro-batch equally."""
        return self.nodes * self.per_node
