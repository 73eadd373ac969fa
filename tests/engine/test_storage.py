"""Files that are written whole, and the folder that a run makes or refuses."""

import pytest
import torch

from freqformer import FreqFormerError
from freqformer.engine.storage import WholeFiles, last_checkpoint, prepare_folder, require_space


def test_a_checkpoint_is_written_into_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "last.ckpt"
    WholeFiles().save_checkpoint({"x": torch.arange(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "last.ckpt"
    files = WholeFiles()
    files.save_checkpoint({"x": 1}, path)

    def fail(value, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((FreqFormerError, KeyboardInterrupt)):
        files.save_checkpoint({"x": 2}, path)
    assert torch.load(path, weights_only=True) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_is_made_with_its_parents(tmp_path):
    prepare_folder(tmp_path / "a" / "b", resume=False, overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()
    assert last_checkpoint(tmp_path / "a" / "b").parent.is_dir()


def test_leftovers_of_killed_saves_are_swept(tmp_path):
    prepare_folder(tmp_path, resume=False, overwrite=False)
    leftovers = [tmp_path / ".config.yaml.123.tmp", tmp_path / "checkpoints" / ".last.ckpt.123.tmp"]
    for leftover in leftovers:
        leftover.write_text("half")
    prepare_folder(tmp_path, resume=True, overwrite=False)
    assert [leftover for leftover in leftovers if leftover.exists()] == []


def test_resume_keeps_what_overwrite_removes(tmp_path):
    (tmp_path / "config.yaml").write_text("a run")
    (tmp_path / "metrics.json").write_text("{}")
    prepare_folder(tmp_path, resume=True, overwrite=False)
    assert (tmp_path / "metrics.json").exists()
    prepare_folder(tmp_path, resume=False, overwrite=True)
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "config.yaml").exists()


def test_overwrite_of_a_folder_without_a_run_removes_nothing(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("mine")
    (tmp_path / "config.json").write_text("mine")
    prepare_folder(tmp_path, resume=False, overwrite=True)
    assert (tmp_path / "logs" / "mine.txt").exists()
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["report.html", "best.png", "logs/mine.txt", "model.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_run_would_replace_is_refused(tmp_path, name, resume):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    # Lightning puts its logs beside others.
    if not (resume and name.startswith("logs")):
        with pytest.raises(FreqFormerError, match="--overwrite"):
            prepare_folder(tmp_path, resume=resume, overwrite=False)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_folder_that_was_prepared_and_no_more_is_taken_again(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        prepare_folder(tmp_path, resume=False, overwrite=False)
    (tmp_path / "checkpoints/last.ckpt").write_text("a copy, to go on from")
    prepare_folder(tmp_path, resume=True, overwrite=False)


def test_space_is_asked_for_in_proportion_to_the_model(tmp_path):
    require_space(tmp_path, 1000)
    with pytest.raises(FreqFormerError, match="not enough disk"):
        require_space(tmp_path, 10**15)
