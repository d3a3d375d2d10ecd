"""What follows from frozen weights alone, computed once per pipeline: their hash, a super-category's encoding."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
SAMPLES = 16  # values looked at in each tensor


def state_of(tensors: Iterable[Tensor]) -> tuple:
    """What tells tensors from others, and from themselves before they were written to: where they lie, how often they
    were changed in place, and, since a write through `.data` is not counted, a sample of their values."""
    tensors = [t.detach() for t in tensors]
    by_device: dict[torch.device, list[Tensor]] = {}
    for t in tensors:
        by_device.setdefault(t.device, []).append(t.reshape(-1)[:: max(1, t.numel() // SAMPLES)])
    # One transfer a device.
    samples = [torch.cat(values).float().cpu().numpy().tobytes() for values in by_device.values()]
    version = lambda t: None if t.is_inference() else t._version  # tensors made in inference mode do not count
    return tuple((t.data_ptr(), version(t), t.dtype, t.shape) for t in tensors), tuple(samples)


def remembered(pipe, name, tensors: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
    """`compute()`, or what it gave on this pipeline under `name` while `tensors` were as they are now."""
    return kept(pipe, name, state_of(tensors), compute)


def kept(pipe, name, state, compute: Callable[[], Value]) -> Value:
    """`compute()`, or what it gave on this pipeline under `name` while `state` was equal to this one."""
    memory = pipe.__dict__.setdefault("_perfusion_memory", {})
    if name not in memory or memory[name][0] != state:
        memory[name] = state, compute()
    return memory[name][1]
