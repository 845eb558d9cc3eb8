"""Points in time on the device: events on a GPU, where the host runs ahead, the clock elsewhere. Read once a window."""

import time

import torch

Stamp = torch.cuda.Event | float


def stamp(device: torch.device) -> Stamp:
    """Now, on the device. Does not wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds(first: Stamp, second: Stamp) -> float:
    """Between two stamps of a device whose work is done. Raises TypeError for stamps of different kinds."""
    if isinstance(first, float) and isinstance(second, float):
        return second - first
    if isinstance(first, float) or isinstance(second, float):
        raise TypeError("time stamps of two kinds of device")
    return float(first.elapsed_time(second)) / 1e3
