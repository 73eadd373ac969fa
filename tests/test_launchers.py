"""The place of a process, from what each launcher leaves in the environment."""

import pytest

from freqformer.errors import FreqFormerError, SaidElsewhere
from freqformer.launchers import Place, first_host, only_the_first_complains, place, restarts

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1234"},
    **{"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "2"},
}
OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(
    ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"), "1212", strict=True
)}  # fmt: skip
SLURM = {
    **{"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "7"},
    **{"SLURM_NNODES": "2", "SLURM_JOB_ID": "4321987", "SLURM_JOB_NODELIST": "gpu[03-04]", "SLURM_JOB_NAME": "run"},
    **{"SLURM_TASKS_PER_NODE": "4,3"},
}


def test_torchrun():
    assert place(TORCHRUN) == Place("torchrun", 5, 8, 1, 4, 1, 2, "a", 1234)
    assert restarts(TORCHRUN) == 2
    assert restarts({}) == 0


def test_ranks_without_a_launchers_name():
    plain = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place(plain) == Place("the environment", 1, 2, 0, 1, 1, 2, "a", 1)
    assert place({**plain, "LOCAL_RANK": "1"}) == Place("the environment", 1, 2, 1, 2, 0, 1, "a", 1)


def test_open_mpi_and_mpich():
    found = place({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"})
    assert found == Place("mpirun", 1, 2, 1, 2, 0, 1, "127.0.0.1", 29500)
    mpich = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert place(mpich) == Place("mpirun", 3, 4, 1, 2, 1, 2, None, 29500)
    assert place({**mpich, "MASTER_ADDR": "b", "MASTER_PORT": "7"}) == Place("mpirun", 3, 4, 1, 2, 1, 2, "b", 7)


def test_slurm():
    assert place(SLURM) == Place("SLURM", 5, 7, 1, 3, 1, 2, "gpu03", 15000 + 1987)
    one = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    found = place(one)
    assert found is not None
    assert (found.size, found.local_size, found.nodes, found.address) == (2, 2, 1, "127.0.0.1")
    # Of a job's steps each has its own number of tasks.
    step = place({**SLURM, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "3(x2)"})
    assert step is not None
    assert (step.size, step.local_size) == (6, 3)


def test_mpirun_inside_of_a_slurm_job_is_mpirun():
    found = place({**SLURM, **OPEN_MPI})
    assert found is not None
    assert (found.launcher, found.rank, found.size) == ("mpirun", 1, 2)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**SLURM, "SLURM_JOB_NAME": "interactive"},
        {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"},
        {**SLURM, "SLURM_NTASKS": "1"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "4"},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
    ],
)
def test_no_launcher_or_a_process_alone(environ):
    assert place(environ) is None


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu03", "gpu03"), ("gpu[03-05,9],login", "gpu03"), ("a-1,b[1-2]", "a-1"), ("n[7,9]-ib", "n7-ib")],
)
def test_the_first_of_slurms_hosts(hosts, first):
    assert first_host(hosts) == first


def test_what_is_no_number_is_named():
    with pytest.raises(FreqFormerError, match="RANK in the environment must be a number, not 'x'"):
        place({**TORCHRUN, "RANK": "x"})


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_of_a_launchers_processes_complains(monkeypatch, rank):
    for name, value in {**TORCHRUN, "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FreqFormerError if rank == "0" else SaidElsewhere) as stop, only_the_first_complains():
        raise FreqFormerError("wrong")
    assert stop.value.exit_code == 2
