"""Peak memory of a network's step: counted by the allocator on a GPU, a process's resident memory on a CPU.

On a CPU a process of its own runs the network alone, and its allocator is told to give back at once what is freed, so
that what is resident is what is alive. The peak is what all tensors hold between two steps plus the growth of resident
memory during a step. Compilers, libraries and the warm-up thus do not count; scratch memory of matrix products and
transforms does.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FreqFormerError
from .networks import Network, make_step
from .timing import Step, synchronize

_WARMUP, _STEPS = 1, 2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def is_measurable() -> bool:
    """Whether this system tells, and forgets when asked, a process's peak of resident memory: Linux does."""
    return _STATUS.exists() and _CLEAR.exists()


def cpu_peaks(networks: Sequence[Network]) -> list[int]:
    """Peak bytes of the steps of networks on a CPU, measured one after another in one fresh process.

    Raises:
        FreqFormerError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "freqformer.bench.memory"],
        input=json.dumps([asdict(network) for network in networks]),
        env=forgetful_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FreqFormerError(f"the process that measures memory failed ({reason}): leave memory out with --no-memory")
    return json.loads(done.stdout.splitlines()[-1])


def forgetful_environment() -> dict[str, str]:
    """The environment of a process whose allocator gives back what is freed, as `step_peak` needs it."""
    # Without a fixed threshold the allocator learns to keep what was freed.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {**os.environ, **settings}


def cuda_peak(step: Step, before: int) -> int:
    """Peak bytes that steps have allocated on the GPU beyond the ``before`` bytes that were there without them."""
    device = torch.device("cuda")
    for _ in range(_WARMUP):
        step()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_STEPS):
        step()
    synchronize(device)
    return torch.cuda.max_memory_allocated() - before


def _child(networks: Sequence[Network]) -> list[int]:
    return [step_peak(make_step(network)) for network in networks]


def step_peak(step: Step) -> int:
    """Peak bytes of a step on the CPU, in a process that has run nothing else and whose allocator keeps nothing."""
    for _ in range(_WARMUP):
        step()
    gc.collect()
    # Writing 5 makes Linux forget the peak.
    _CLEAR.write_text("5")
    before = _kilobytes("VmRSS")
    held = _tensor_bytes()
    for _ in range(_STEPS):
        step()
    return held + 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _tensor_bytes() -> int:
    """Bytes of all storages that a tensor of this process holds: weights, optimiser, images, cached constants."""
    storages = (
        thing.untyped_storage()
        for thing in gc.get_objects()
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device.type == "cpu" and thing.layout == torch.strided
    )
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    print(json.dumps(_child([Network(**values) for values in json.load(sys.stdin)])))
