"""Processes of one run: who am I, sums and means across them, what all agree on. Every function is a no-op alone.

Gradients are averaged by a function after backward, not by a wrapper around the model. What is decided on the CPU
(whether to stop, what the main process found on disk) travels through a group of its own, `gloo`, so that no
decision waits for a GPU. A process that does not answer is noticed by all others: see PeerLost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20
CONTROL_LIMIT = 600.0       # seconds that one process may be behind the others: the slowest save of the main one

T = TypeVar("T")


class PeerLost(RuntimeError):
    """Another process of this run died, or does not answer: nothing can be exchanged any more."""


class MainFailed(RuntimeError):
    """The main process could not do what it alone does; why is told by itself."""


_control: dist.ProcessGroup | None = None       # for decisions
_meeting: dist.ProcessGroup | None = None       # for `meet` alone: nothing else can be taken for a meeting
_apart = False
_exchanges = 0              # how often this process has taken part in an exchange: equal on all while in step


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _apart else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


# -- joining and leaving -----------------------------------------------------------------------------------------------


def start() -> bool:
    """Join the group that torchrun's variables describe. False alone, and where we are in it already.

    Takes the GPU of our local rank before anything is allocated on another one.
    """
    global _control, _meeting, _exchanges
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return False
    cuda = torch.cuda.is_available()
    if cuda:                                    # the rest of the division: a process may see its own GPU only
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    _control = dist.new_group(backend="gloo", timeout=timedelta(seconds=CONTROL_LIMIT))
    _meeting = dist.new_group(backend="gloo")
    _exchanges = 0
    return True


def stop() -> None:
    """Leave the group. A process that ends without it may be aborted by gloo's threads after its work is done."""
    global _control, _meeting
    if dist.is_initialized():
        dist.destroy_process_group()
    _control = _meeting = None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process counts as alone: for a forward that not all processes make equally often."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def _exchange(call: Callable[..., T], *given: Any, **keywords: Any) -> T:
    """Every exchange goes through here: it is counted, and a process that is gone has one name."""
    global _exchanges
    _exchanges += 1
    try:
        return call(*given, **keywords)
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> PeerLost:
    """'Connection closed by peer', without the place in gloo's source, addresses and advice."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    told = re.sub(r"\s*\[[^]]*\](:\d+)?", "", first).partition(". ")[0].strip()
    backend = "nccl" if "NCCL" in str(error) else "gloo"
    return PeerLost(f"another process of this run died or stopped answering ({backend}: {told[:200]})")


# -- tensors -----------------------------------------------------------------------------------------------------------


def sum_across(value: Tensor) -> Tensor:
    """Sum over processes, without gradient; the argument is not changed."""
    if world_size() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    _exchange(dist.all_reduce, total)
    return total


def min_across(value: Tensor) -> Tensor:
    """Element-wise minimum over processes, without gradient; the argument is not changed."""
    if world_size() == 1:
        return value
    least = value.detach().clone(memory_format=torch.contiguous_format)
    _exchange(dist.all_reduce, least, op=dist.ReduceOp.MIN)
    return least


class _MeanAcross(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return sum_across(value) / world_size()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Mean in the backward too: after `average_gradients` the result is the gradient of the global function.
        return mean_across(gradient)            # differentiable again, for a gradient penalty


def mean_across(value: Tensor) -> Tensor:
    """Mean over processes, differentiable: mean forward, mean backward."""
    return value if world_size() == 1 else _MeanAcross.apply(value)


def gather(value: Tensor) -> Tensor:
    """Concatenate along the first axis in rank order; the same shape on every process."""
    if world_size() == 1:
        return value
    value = value.contiguous()
    parts = [torch.empty_like(value) for _ in range(world_size())]
    _exchange(dist.all_gather, parts, value)
    return torch.cat(parts)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Mean gradient over processes, in buckets of about 32 MiB of a fixed order.

    A parameter that some process used gets the mean (absent gradients count as zero); one that no process used
    keeps None, so that Adam skips it everywhere. How many used it travels in the bucket and is read, which waits
    for the device, only where a gradient is absent.
    """
    if world_size() == 1:
        return
    for bucket in _buckets(parameters):
        present = [p.grad is not None for p in bucket]
        users = torch.ones(len(bucket), device=bucket[0].device) if all(present) else bucket[0].new_tensor(present)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket]
        flat = torch.cat([*parts, users])
        _exchange(dist.all_reduce, flat)
        counts = flat[-len(bucket):].tolist() if not all(present) else [1] * len(bucket)
        flat /= world_size()
        means = flat[:-len(bucket)].split([part.numel() for part in parts])
        for p, mean, count in zip(bucket, means, counts, strict=True):
            if p.grad is not None:
                p.grad.copy_(mean.view_as(p))
            elif count:
                p.grad = mean.view_as(p).clone()


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive parameters, together of at least BUCKET_BYTES: the same on every process."""
    bucket: list[Tensor] = []
    size = 0
    for p in parameters:
        bucket.append(p)
        size += p.numel() * p.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


# -- decisions ---------------------------------------------------------------------------------------------------------


def from_main(find: Callable[[], T]) -> T:
    """What `find` returns on the main process, the only one that calls it; known to all, so that all do the same.

    What it raises there is raised there, and MainFailed everywhere else.
    """
    if world_size() == 1:
        return find()
    told: tuple[bool, Any] | None = None
    failure: Exception | None = None
    if is_main():
        try:
            told = True, find()
        except Exception as error:
            told, failure = (False, f"the main process failed: {error}"), error
    box = [told]
    _exchange(dist.broadcast_object_list, box, src=0, group=_control)
    if failure is not None:
        raise failure
    good, found = box[0]
    if not good:
        raise MainFailed(found)
    return found


def gather_objects(value: T) -> list[T]:
    """What each process gives, in rank order; small things that can be pickled."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    _exchange(dist.all_gather_object, found, value, group=_control)
    return found


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process gets the same answer."""
    if world_size() == 1:
        return flag
    total = torch.tensor([float(flag)])
    _exchange(dist.all_reduce, total, group=_control)
    return bool(total.item())


class Agreement:
    """Yes-or-no questions that are asked at the end of one step and answered at the end of the next one.

    So nobody waits: when the answer is wanted, everybody's part has long been under way. All processes get the same
    answer at the same step, which alone makes it safe to act on it.
    """

    def __init__(self) -> None:
        self.pending: tuple[dist.Work, Tensor] | None = None

    def answer(self, *here: bool) -> tuple[bool, ...]:
        """What any process said when it was last asked, no where nobody was; alone, what we say now."""
        if world_size() == 1:
            return here
        if self.pending is None:
            return (False,) * len(here)
        work, total = self.pending
        self.pending = None
        try:
            work.wait()
        except RuntimeError as error:
            raise _lost(error) from error
        return tuple(bool(n) for n in total.tolist())

    def ask(self, *here: bool) -> None:
        if world_size() > 1:
            total = torch.tensor(here, dtype=torch.float32)
            self.pending = _exchange(dist.all_reduce, total, group=_control, async_op=True), total


def meet(seconds: float, *, failed: bool = False) -> None:
    """Wait until all processes are here, so long at most.

    Raises PeerLost when one does not come, when only some of them have failed, and when one comes from another
    place: with another number of exchanges behind it.
    """
    if world_size() == 1:
        return
    here = torch.tensor([_exchanges, failed], dtype=torch.int64)
    extremes = torch.cat([here, -here])
    options = dist.AllreduceOptions()
    options.reduceOp, options.timeout = dist.ReduceOp.MIN, timedelta(seconds=seconds)
    _exchange(lambda: _meeting.allreduce([extremes], options).wait())
    fewest, all_failed, most, any_failed = extremes.tolist()
    if all_failed != -any_failed:
        raise PeerLost("another process of this run failed")
    if fewest != -most:
        raise PeerLost(f"the processes of this run are at different places ({fewest} to {-most} exchanges behind them)")


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from named parts: the same on every machine and for any number of processes."""
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_step(seed: int, step: int) -> None:
    """Randomness is a function of (seed, step, rank): a resumed run draws what an uninterrupted one draws."""
    torch.manual_seed(derived_seed(seed, step, rank()))
