"""Which process of how many this one is, read from what torchrun, mpirun or SLURM leave in the environment."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import FreqFormerError, SaidElsewhere

_HERE = "127.0.0.1"
# PyTorch's own default.
_PORT = 29500


@dataclass(frozen=True)
class Place:
    """The place of a process in a run of several.

    Args:
        launcher: who started it.
        rank: its number among all.
        size: number of all processes.
        local_rank: its number among those of its node.
        local_size: number of processes of its node.
        node: number of its node.
        nodes: number of nodes.
        address: where process 0 can be reached; None when the environment does not say.
        port: the port it listens on there.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    nodes: int
    address: str | None
    port: int


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place that a launcher gave to this process; None if there is none, or it started this one alone.

    Open MPI and MPICH come before SLURM: inside of a SLURM job mpirun leaves SLURM's variables as they were, the
    same in each process.

    Args:
        environ: the environment to read.

    Raises:
        FreqFormerError: a variable is not a number.
    """
    for read in (_torchrun, _open_mpi, _mpich, _slurm):
        found = read(_Numbers(environ))
        if found is not None:
            return found if found.size > 1 else None
    return None


def restarts(environ: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started the processes of this run anew, or SLURM its job."""
    numbers = _Numbers(environ)
    return numbers.get("TORCHELASTIC_RESTART_COUNT", 0) + numbers.get("SLURM_RESTART_COUNT", 0)


@contextmanager
def only_the_first_complains() -> Iterator[None]:
    """What every process of a launcher refuses alike, such as a wrong flag, is said by the first alone.

    Raises:
        SaidElsewhere: in the others, in place of a FreqFormerError.
    """
    try:
        yield
    except FreqFormerError as error:
        here = place()
        if here is not None and here.rank > 0:
            raise SaidElsewhere(error.exit_code) from error
        raise


class _Numbers:
    """An environment, read as numbers."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def __contains__(self, name: str) -> bool:
        return name in self.environ

    def __getitem__(self, name: str) -> int:
        try:
            return int(self.environ[name])
        except ValueError as error:
            raise FreqFormerError(f"{name} in the environment must be a number, not {self.environ[name]!r}") from error

    def get(self, name: str, default: int) -> int:
        return self[name] if name in self else default  # noqa: SIM401 (this is that method)

    def address(self, nodes: int) -> str | None:
        return self.environ.get("MASTER_ADDR", _HERE if nodes == 1 else None)


def _torchrun(env: _Numbers) -> Place | None:
    if not ("RANK" in env and "WORLD_SIZE" in env):
        return None
    rank, size = env["RANK"], env["WORLD_SIZE"]
    local_size = env.get("LOCAL_WORLD_SIZE", size if "LOCAL_RANK" in env else 1)
    nodes = env.get("GROUP_WORLD_SIZE", -(-size // local_size))
    return Place(
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in env else "the environment",
        rank=rank,
        size=size,
        local_rank=env.get("LOCAL_RANK", 0),
        local_size=local_size,
        node=env.get("GROUP_RANK", rank // local_size),
        nodes=nodes,
        address=env.address(nodes),
        port=env.get("MASTER_PORT", _PORT),
    )


def _open_mpi(env: _Numbers) -> Place | None:
    prefix = "OMPI_COMM_WORLD_"
    return _mpi(env, *(prefix + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))


def _mpich(env: _Numbers) -> Place | None:
    return _mpi(env, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _mpi(env: _Numbers, rank: str, size: str, local_rank: str, local_size: str) -> Place | None:
    # srun with a PMI library sets the first two alone, and its own.
    if not all(name in env for name in (rank, size, local_rank, local_size)):
        return None
    # MPI does not say how many nodes there are; uneven ones count as one more.
    nodes = -(-env[size] // env[local_size])
    return Place(
        launcher="mpirun",
        rank=env[rank],
        size=env[size],
        local_rank=env[local_rank],
        local_size=env[local_size],
        node=env[rank] // env[local_size],
        nodes=nodes,
        address=env.address(nodes),
        port=env.get("MASTER_PORT", _PORT),
    )


def _slurm(env: _Numbers) -> Place | None:
    if not all(name in env for name in ("SLURM_PROCID", "SLURM_LOCALID")):
        return None
    # A shell inside of a job is no task of it, whatever the job's size.
    if env.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    size = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", 1))
    nodes = env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", env.get("SLURM_JOB_NUM_NODES", 1)))
    node = env.get("SLURM_NODEID", 0)
    counts = env.environ.get("SLURM_STEP_TASKS_PER_NODE") or env.environ.get("SLURM_TASKS_PER_NODE")
    hosts = env.environ.get("SLURM_STEP_NODELIST") or env.environ.get("SLURM_JOB_NODELIST")
    return Place(
        launcher="SLURM",
        rank=env["SLURM_PROCID"],
        size=size,
        local_rank=env["SLURM_LOCALID"],
        local_size=_tasks_of(counts, node) or env.get("SLURM_NTASKS_PER_NODE", -(-size // nodes)),
        node=node,
        nodes=nodes,
        address=env.address(nodes) or (first_host(hosts) if hosts else None),
        # Every process knows the job's number, and jobs that share a node have different ones.
        port=env.get("MASTER_PORT", 15000 + env.get("SLURM_JOB_ID", _PORT) % 10000),
    )


def _tasks_of(counts: str | None, node: int) -> int | None:
    """The tasks of one node, from SLURM's ``4(x2),3``: two nodes of four and one of three."""
    every: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts or ""):
        every += [int(count)] * int(times or 1)
    return every[node] if node < len(every) else None


def first_host(hosts: str) -> str:
    """The first host of SLURM's list: ``gpu[03-05,9],login`` begins with ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else hosts
