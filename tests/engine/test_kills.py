"""A run that is killed again and again, at moments drawn by chance, is the run that never was."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from freqformer.engine import run

KILLS = 10
# Everything that a resumed run has to find again: drop path, mixup, the average, accumulated gradients that do not
# divide the epoch, two workers, states saved within an epoch as often as can be.
SETTINGS = {"epochs": 6, "accumulate": 4, "num_workers": 2, "save_every_minutes": 1e-6, "average_checkpoints": 2}


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tiny, tmp_path, left_behind):
    started = time.monotonic()
    run(tiny(tmp_path / "whole", **SETTINGS))
    length = time.monotonic() - started
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    folder = tmp_path / "run"
    config = tmp_path / "run.yaml"
    config.write_text((tmp_path / "whole" / "config.yaml").read_text())
    first = [sys.executable, "-m", "freqformer", "train", "--config", str(config), "--output-dir", str(folder)]
    again = [sys.executable, "-m", "freqformer", "train", "--output-dir", str(folder), "--resume"]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for _ in range(KILLS):
        began = (folder / "config.yaml").exists()
        with subprocess.Popen(again if began else first, start_new_session=True, **outputs) as process:
            # The first line comes when the data are open and the model is made, or when nothing is left to do.
            line = process.stdout.readline()
            time.sleep(moments.uniform(0, 2 * length / KILLS))
            os.killpg(process.pid, signal.SIGKILL)
            said = line + process.stdout.read()
        assert process.returncode == -signal.SIGKILL or "nothing is left" in said, (seed, said)
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (seed, done.stderr)
    whole, resumed = left_behind(tmp_path / "whole"), left_behind(folder)
    assert [name for name in whole if whole[name] != resumed[name]] == [], seed
    assert list(folder.rglob("*.tmp")) == []
