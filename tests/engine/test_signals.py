"""Under SLURM a signal before the end of the time saves the run and queues the job again."""

import signal

import pytest

from freqformer.engine import Interrupted, run


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A program of that name that writes down what it is asked, and ends with a code."""

    def install(code=0, complaint=""):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "{complaint}" >&2\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return tmp_path / "asked"

    return install


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "17_3"),
    ],
)
def test_slurms_signal_saves_and_queues_again(
    tiny, finished, tmp_path, signal_at, scontrol, monkeypatch, left_behind, variables, job
):
    asked = scontrol()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    disarm = signal_at(3, signal.SIGUSR1)
    with pytest.raises(Interrupted) as stopped:
        run(tiny(tmp_path / "run"))
    disarm()
    assert stopped.value.exit_code == 128 + signal.SIGUSR1
    assert asked.read_text() == f"requeue {job}\n"
    # SLURM starts the very same command again.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(tiny(tmp_path / "run"))
    whole, resumed = left_behind(finished), left_behind(tmp_path / "run")
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_a_restarted_job_does_not_take_over_another_run(tiny, finished, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(Exception, match="holds another run"):
        run(tiny(finished, lr=0.5))


def test_a_job_that_slurm_does_not_take_back_is_said(tiny, tmp_path, signal_at, scontrol, monkeypatch, capsys):
    scontrol(1, "Requeue is disabled")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    signal_at(1, signal.SIGUSR1)
    with pytest.raises(Interrupted):
        run(tiny(tmp_path / "run"))
    assert "did not queue job 17 again (Requeue is disabled)" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_outside_of_slurm_the_signal_only_saves(tiny, tmp_path, signal_at, scontrol, monkeypatch):
    asked = scontrol()
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signal_at(1, signal.SIGUSR1)
    with pytest.raises(Interrupted):
        run(tiny(tmp_path / "run"))
    assert not asked.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_other_signals_do_not_queue_again(tiny, tmp_path, signal_at, scontrol, monkeypatch, number):
    asked = scontrol()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    signal_at(1, number)
    with pytest.raises(Interrupted):
        run(tiny(tmp_path / "run"))
    assert not asked.exists()
