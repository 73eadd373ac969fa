"""The processes of a run: started or joined, kept in step, and ended together when one of them fails."""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import Store, TCPStore

from ..errors import FreqFormerError, SaidElsewhere
from ..launchers import Place, only_the_first_complains, place, restarts

# What a collective may wait for a process that loads, evaluates or draws.
_PATIENCE = timedelta(minutes=30)
# Seconds in which all processes must have started.
_GATHERING = 300.0
# Seconds that a process has to notice by itself that another one has failed.
_GRACE = 10.0
# Seconds that a process has to end in order; PyTorch's loaders may wait 5 for each of theirs.
_LEAVING = 30.0

_ALONE = Place("nobody", 0, 1, 0, 1, 0, 1, None, 0)
_here = _ALONE
# Beside Lightning's own group, which on a GPU cannot reduce what lies on the CPU.
_control: dist.ProcessGroup | None = None

T = TypeVar("T")
C = TypeVar("C", bound="Processes")


class Processes(Protocol):
    """What a config says of a run's processes."""

    devices: int | str
    num_nodes: int
    strategy: str
    accelerator: str


def rank() -> int:
    """The number of this process among those of the run."""
    return _here.rank


def world_size() -> int:
    """The number of processes of the run."""
    return _here.size


def gathered(value: T) -> list[T]:
    """Every process's value, in order; all have to call it."""
    if _control is None:
        return [value]
    values: list[Any] = [None] * _here.size
    dist.all_gather_object(values, value, group=_control)
    return values


def largest(value: int) -> int:
    """The largest of the processes' values; all have to call it. It costs no look at a GPU."""
    if _control is None:
        return value
    agreed = torch.tensor(value)
    dist.all_reduce(agreed, dist.ReduceOp.MAX, group=_control)
    return int(agreed)


def on_first(work: Callable[[], T]) -> T:
    """Do something in process 0 alone while the others wait for its result; all have to call it.

    Raises:
        SaidElsewhere: in the others, when it fails.
    """
    if _control is None:
        return work()
    answer: list[Any] = [None, None]
    failed: Exception | None = None
    if _here.rank == 0:
        try:
            answer[0] = work()
        except Exception as error:
            failed = error
            answer[1] = _exit_code(error)
    dist.broadcast_object_list(answer, src=0, group=_control)
    if failed is not None:
        raise failed
    if answer[1] is not None:
        raise SaidElsewhere(answer[1])
    return answer[0]


def together(work: Callable[[C], T], config: C) -> T:
    """Do a config's work in as many processes as it, or the launcher of this one, asks for.

    Args:
        work: done in each process; a function of a module, since other processes have to find it.
        config: ``devices``, ``num_nodes``, ``strategy`` and ``accelerator``, and what the work needs.

    Returns:
        What the work returns in this process.

    Raises:
        FreqFormerError: settings that contradict each other or the launcher, or a process that ended.
        SaidElsewhere: another process failed, and has said so.
        Exception: what the work raises in this process or, when it was started from here, in another.
    """
    if _control is not None:
        # Already inside, such as an evaluation at the end of a run.
        return work(config)
    with only_the_first_complains():
        here = place()
        count = _devices(config, here)
        if here is not None and here.address is None:
            raise FreqFormerError(
                f"{here.launcher} started {here.nodes} nodes: set MASTER_ADDR to the first one's name"
            )
    if here is not None:
        with _joined(here, _open_store(here, first=here.rank == 0), config.accelerator):
            return work(config)
    if config.num_nodes > 1:
        here = _first_of_node(config.num_nodes, count)
    elif count > 1 or config.strategy == "fsdp":
        here = replace(_ALONE, launcher="freqformer", size=count, local_size=count, address="127.0.0.1")
    else:
        return work(config)
    return _launched(work, config, here)


def _devices(config: Processes, here: Place | None) -> int:
    """The processes of this node."""
    asked = config.devices
    if asked != "auto" and (not isinstance(asked, int) or asked < 1):
        raise FreqFormerError(f"--devices must be auto or at least 1, not {asked}")
    if config.num_nodes < 1:
        raise FreqFormerError(f"--num-nodes must be at least 1, not {config.num_nodes}")
    if here is not None:
        if asked not in ("auto", here.local_size):
            raise FreqFormerError(
                f"--devices says {asked}, {here.launcher} has started {here.local_size} on this node: leave it out"
            )
        if config.num_nodes not in (1, here.nodes):
            raise FreqFormerError(
                f"--num-nodes says {config.num_nodes}, {here.launcher} has started {here.nodes}: leave it out"
            )
    count = here.local_size if here is not None else 1 if asked == "auto" else int(asked)
    if on_gpu(config.accelerator):
        gpus = torch.cuda.device_count()
        # A launcher may show to each process its own GPU alone.
        if count > gpus and (here is None or gpus > 1):
            raise FreqFormerError(f"{count} processes need as many GPUs, this node has {gpus}: lower --devices")
    return count


def on_gpu(accelerator: str) -> bool:
    """Whether Lightning's accelerator means CUDA here."""
    return accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def _first_of_node(nodes: int, count: int) -> Place:
    """The place of a process that is to start those of its node, one of several."""
    try:
        node, address, port = int(os.environ["NODE_RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise FreqFormerError(
            f"--num-nodes {nodes} needs MASTER_ADDR, MASTER_PORT and NODE_RANK (0 to {nodes - 1}) in the environment "
            "of each node, or a launcher: torchrun, srun or mpirun (docs/scale.md)"
        ) from error
    return Place("freqformer", node * count, nodes * count, 0, count, node, nodes, address, port)


def _open_store(here: Place, *, first: bool) -> TCPStore:
    """The table in which processes find each other; the first one keeps it, unless torchrun does."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and here.launcher == "torchrun":
        first = False
    assert here.address is not None
    try:
        return TCPStore(
            here.address,
            here.port,
            here.size,
            is_master=first,
            timeout=timedelta(seconds=_GATHERING),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        doing = "listen on" if first else "reach"
        raise FreqFormerError(
            f"process {here.rank} of {here.size} cannot {doing} {here.address}:{here.port}: check that all have "
            "started, MASTER_ADDR and MASTER_PORT"
        ) from error


def _launched(work: Callable[[C], T], config: C, here: Place) -> T:
    """Start this node's other processes, and do the work in this one too."""
    store = _open_store(here, first=here.rank == 0)
    here = replace(here, port=store.port)
    context = get_context("spawn")
    others = [
        context.Process(
            target=_start,
            args=(work, config, replace(here, rank=here.rank + local, local_rank=local)),
            name=str(here.rank + local),
        )
        for local in range(1, here.local_size)
    ]
    try:
        for process in others:
            process.start()
        with _joined(here, store, config.accelerator, others):
            return work(config)
    finally:
        until = time.monotonic() + _LEAVING
        for process in others:
            if process.pid is not None:
                process.join(max(0.0, until - time.monotonic()))
                process.kill()
                process.join()


def _start(work: Callable[[C], Any], config: C, here: Place) -> None:
    """What a started process does; the one that started it says what went wrong."""
    # This process was spawned, since a fork would copy what threads hold; its loaders' workers need not be.
    set_start_method(None, force=True)
    try:
        with _joined(here, _open_store(here, first=False), config.accelerator):
            work(config)
    except BaseException as error:
        sys.exit(_exit_code(error))


@contextmanager
def _joined(here: Place, store: TCPStore, accelerator: str, others: Sequence[SpawnProcess] = ()) -> Iterator[None]:
    """Be one of the processes: the group's collectives work inside, and a failure of one is everybody's."""
    global _here, _control
    table = _own_part(store)
    threads, first_rank = torch.get_num_threads(), rank_zero_only.rank  # type: ignore[attr-defined]
    done, failed = threading.Event(), False
    try:
        _meet(here, table, others)
        threading.Thread(target=_watch, args=(here, done, others), daemon=True).start()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, threads // here.local_size))
        if on_gpu(accelerator):
            torch.cuda.set_device(_seen(here).local_rank)
        backend = "nccl" if on_gpu(accelerator) else "gloo"
        group = dist.PrefixStore("group", table)
        dist.init_process_group(backend, store=group, rank=here.rank, world_size=here.size, timeout=_PATIENCE)
        _here, _control = here, dist.new_group(backend="gloo", timeout=_PATIENCE)  # type: ignore[assignment]
        # Lightning reads it from the environment otherwise.
        rank_zero_only.rank = here.rank  # type: ignore[attr-defined]
        yield
        # Process 0 keeps the table: nobody leaves before the others are through.
        largest(0)
    except BaseException as error:
        failed = True
        cause = _cause(error, here, table, others)
        if cause is error:
            raise
        raise cause  # noqa: B904 (it has a cause of its own)
    finally:
        done.set()
        _here, _control = _ALONE, None
        rank_zero_only.rank = first_rank  # type: ignore[attr-defined]
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()
        if failed:
            _let_read(here, table)


def _own_part(store: Store) -> Store:
    # torchrun's table outlives the processes that it starts anew.
    return dist.PrefixStore(f"freqformer/{restarts()}", store)


def _meet(here: Place, table: Store, others: Sequence[SpawnProcess]) -> None:
    """Wait until every process has come this far."""
    table.set(f"here/{here.rank}", "")
    everyone = [f"here/{rank}" for rank in range(here.size)]
    until, said = time.monotonic() + _GATHERING, time.monotonic() + 30
    while not table.check(everyone):
        missing = [rank for rank, key in enumerate(everyone) if not table.check([key])]
        for process in others:
            if process.exitcode:
                raise FreqFormerError(f"process {process.name} ended before it began (exit code {process.exitcode})")
        if time.monotonic() > until:
            raise FreqFormerError(
                f"process {missing[0]} of {here.size} has not come within {_GATHERING:.0f} s: start one for each that "
                f"{here.launcher} has promised (with SLURM by srun)"
            )
        if here.rank == 0 and time.monotonic() > said:
            print(f"waiting for {len(missing)} of {here.size} processes", file=sys.stderr, flush=True)
            said = until
        time.sleep(0.05)


def _cause(error: BaseException, here: Place, table: Store, others: Sequence[SpawnProcess]) -> BaseException:
    """What this process is to raise: its own error if that was the first of all, else the first, or silence."""
    ours = not _is_loss(error)
    try:
        if isinstance(error, SaidElsewhere):
            table.add("informed", 1)
            return error
        if not ours:
            # A process that fails says so before it closes its connections; one that was killed says nothing.
            error = _killed(here, others)
        if table.add("failures", 1) == 1:
            table.set("first", _portable(error))  # type: ignore[arg-type]
            return error
        first, trace = pickle.loads(table.get("first"))
        table.add("informed", 1)
    except RuntimeError:
        # The table is gone, and with it the process that kept it: process 0, and it has said nothing.
        return error if isinstance(error, SaidElsewhere) or ours or here.rank == 1 else SaidElsewhere(1)
    if here.launcher != "freqformer":
        return SaidElsewhere(_exit_code(first))
    if ours and here.local_rank == 0:
        return error
    first.__cause__ = RuntimeError(f"in another process:\n{trace}")
    return first


def _let_read(here: Place, table: Store) -> None:
    """Keep the table for a moment, so that the others can read why they are to end."""
    until = time.monotonic() + 2
    try:
        while here.rank == 0 and table.add("informed", 0) < here.size - 1 and time.monotonic() < until:
            time.sleep(0.02)
    except RuntimeError:
        return


def _is_loss(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _killed(here: Place, others: Sequence[SpawnProcess]) -> FreqFormerError:
    """What to say when a connection broke and no process has said why."""
    ended = wait([process.sentinel for process in others], timeout=_GRACE / 2) if others else []
    for process in others:
        if process.sentinel in ended:
            # A process's connections are closed a moment before it has its exit code.
            process.join(_GRACE / 2)
        if process.exitcode is not None and process.exitcode < 0:
            return _lost(f"process {process.name} of {here.size} was ended by {signal.Signals(-process.exitcode).name}")
    return _lost(f"process {here.rank} of {here.size} has lost another one, which was ended without a word")


def _lost(what: str) -> FreqFormerError:
    error = FreqFormerError(f"{what}: continue with --resume")
    error.exit_code = 1
    return error


def _portable(error: BaseException) -> bytes:
    """An error and its traceback for another process."""
    trace = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((error, trace))
        pickle.loads(data)
        return data
    except Exception:  # an error may be made of anything
        plain = FreqFormerError(str(error) if hasattr(error, "exit_code") else f"{type(error).__name__}: {error}")
        plain.exit_code = _exit_code(error)
        return pickle.dumps((plain, trace))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return getattr(error, "exit_code", 1)


def _watch(here: Place, done: threading.Event, others: Sequence[SpawnProcess]) -> None:
    """End this process when another one has failed and this one waits for it in vain (as NCCL does)."""
    # A connection of its own: on the other one a wait would keep it from looking.
    table = _own_part(_open_store(here, first=False))
    while not done.wait(1):
        code = 0
        try:
            if table.check(["first"]):
                code = _exit_code(pickle.loads(table.get("first"))[0])
        except RuntimeError:
            code = 1
        code = code or int(any(process.exitcode for process in others))
        if code and not done.wait(_GRACE):
            if others:
                print("freqformer: another process of this run has failed", file=sys.stderr, flush=True)
                for process in others:
                    process.kill()
            os._exit(code)


def _seen(here: Place) -> Place:
    """The place as Lightning has to see it: a process that its launcher gave a single GPU is a node of its own."""
    if here.local_size > 1 and torch.cuda.device_count() == 1:
        return replace(here, local_rank=0, local_size=1, node=here.rank, nodes=here.size)
    return here


class World(ClusterEnvironment):
    """Tells Lightning the place of this process; the processes are already there."""

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        self.place = _seen(_here) if on_gpu(accelerator) else _here

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Where process 0 is."""
        return str(self.place.address)

    @property
    def main_port(self) -> int:
        """Where process 0 listens."""
        return self.place.port

    @staticmethod
    def detect() -> bool:
        """Never chosen but by name."""
        return False

    def world_size(self) -> int:
        """The number of processes."""
        return self.place.size

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """The number of this process."""
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """The number of this process on its node."""
        return self.place.local_rank

    def node_rank(self) -> int:
        """The number of the node."""
        return self.place.node
