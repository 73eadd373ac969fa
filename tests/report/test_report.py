"""`freqformer report` and ``freqformer.report``: what the pages say, and that they are safe to open."""

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from freqformer.cli import main
from freqformer.report import compare, write_report
from freqformer.report.compare import draw_curves
from freqformer.report.folder import read_run
from freqformer.report.sweep import write_sweep
from freqformer.tasks import AdaptationConfig, ClassificationConfig

HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a page holds: its tags, links, words and the cells of its tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.words, self.rows = [], [], [], []
        self.in_cell = False
        self.text = Path(path).read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()
        self.words.append(data.strip())

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


def assert_alone(page):
    """It runs nothing and asks the network for nothing."""
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(link.startswith("data:image/") for link in page.links)


def epochs(*scores):
    rows = []
    for number, score in enumerate(scores, 1):
        row = {"epoch": number, "train/loss": 2 / number, "val/loss": 1 / number, "val/top1": score}
        rows.append({**row, "val/top5": 1.0, "lr": 1e-3, "seconds": 2.0})
    return rows


BEST = {"top1": 0.75, "top5": 1.0, "loss": 0.5, "images": 40, "bad_images": 2, "seconds": 0.5, "images_per_second": 80}


@pytest.fixture
def make_run(tmp_path):
    """Write the folder of a training run by hand."""

    def make(name="run", config=None, metrics=None, pictures=(), starts=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings = {**vars(config or ClassificationConfig(arch="gfnet_ti", lr=0.25)), "output_dir": str(folder)}
        (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
        if metrics is None:
            counts = {"parameters": 12_345, "trained_parameters": 12_345, "images_per_epoch": 100}
            metrics = {"epochs": epochs(0.5, 0.75, 0.6), "best": BEST, **counts}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        for picture in pictures:
            Image.new("RGB", (30, 20), (200, 9, 9)).save(folder / picture)
        if starts is not None:
            (folder / "environment.json").write_text(json.dumps(starts))
        return folder

    return make


@pytest.fixture
def refused(capsys):
    """Call the command line; it must refuse in one line, which is returned."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        answer = capsys.readouterr()
        assert stop.value.code == 2
        assert answer.err.startswith("freqformer: ")
        assert answer.err.count("\n") == 1
        return answer.err

    return call


def test_a_page_says_what_came_out_and_how_it_is_repeated(make_run):
    pictures = ("curves.png", "confusion.png", "best.png", "worst.png", "filters.png")
    start = {"date": "2026-01-01", "torch": "2.8", "device": "a chip", "command": "freqformer train --lr 0.25"}
    folder = make_run(pictures=pictures, starts=[start])
    assert write_report(folder) == folder / "report.html"
    page = Page(folder / "report.html")
    assert_alone(page)
    assert page.row("top1")[1] == "75.00%"
    assert page.row("loss")[1] == "0.5000"
    assert "Epoch 2 of 3 is the best by val/top1." in page.words
    assert f"freqformer train --config {folder / 'config.yaml'} --output-dir NEW" in page.words
    assert "freqformer train --lr 0.25" in page.words
    assert page.row("device")[1] == "a chip"
    assert page.row("epoch, with its evaluation")[1] == "2.00 s"
    assert page.row("training, with evaluations")[1] == "50.0 images/s"
    assert page.tags.count("img") == len(pictures)
    assert any("12,345 parameters" in words for words in page.words)
    assert any("without 2 images" in words for words in page.words)


def test_settings_other_than_the_defaults_come_first(make_run):
    page = Page(write_report(make_run()))
    start = page.words.index("Settings other than the defaults")
    changed = page.words[start : page.words.index("All settings")]
    assert {"arch", "gfnet_ti", "lr", "0.25"} <= set(changed)
    # A tuple is a list in the file, and no change; where the run wrote is no setting.
    assert not {"epochs", "scale", "ratio", "output_dir"} & set(changed)
    assert {"epochs", "scale", "ratio"} <= set(page.words)


def test_each_kind_of_run_has_its_own_command(make_run):
    config = AdaptationConfig(encoder="a", method="linear")
    page = Page(write_report(make_run(config=config)))
    assert any(words.startswith("freqformer adapt --config ") for words in page.words)


def test_a_hostile_name_is_text(make_run):
    folder = make_run("a & b")
    with (folder / "examples.csv").open("w", newline="") as file:
        row = {"place": "best 1", "image": f"{HOSTILE}\n.png", "truth": HOSTILE, "predicted": "$x$"}
        writer = csv.DictWriter(file, [*row, "probability", "loss"])
        writer.writeheader()
        writer.writerow({**row, "probability": 0.5, "loss": 1.25})
    with (folder / "per_class.csv").open("w", newline="") as file:
        file.write(f'class,images,accuracy\n"{HOSTILE}",3,0.123456\n0.5,1,\n')
    (folder / "bad_images.csv").write_text(f'image,reason,split\n"{HOSTILE}",broken,train\n')
    page = Page(write_report(folder))
    assert_alone(page)
    assert page.row("best 1")[1:] == [f"{HOSTILE}\n.png", HOSTILE, "$x$", "0.5", "1.25"]
    assert page.row(HOSTILE)[1:] == ["3", "0.1235"]
    assert [HOSTILE, "broken", "train"] in page.rows


def test_an_old_run_has_the_page_of_what_it_left(make_run):
    folder = make_run(metrics={"epochs": epochs(0.5), "best": BEST, "train_seconds": 2.0})
    page = Page(write_report(folder))
    assert_alone(page)
    assert page.row("top1")[1] == "75.00%"
    assert "This run has kept no predictions." in page.words
    assert "This run has left no curves." in page.words
    assert any("older than this page" in words for words in page.words)
    assert "img" not in page.tags


@pytest.mark.parametrize("done", [0, 2])
def test_a_run_that_has_not_ended_says_so(make_run, done):
    folder = make_run(metrics={"epochs": epochs(*[0.5] * done)})
    page = Page(write_report(folder))
    assert any(f"{done} epochs are done" in words for words in page.words)
    (folder / "metrics.json").unlink()
    assert any("0 epochs are done" in words for words in Page(write_report(folder)).words)


def test_a_run_that_has_not_ended_shows_its_best_epoch(make_run):
    page = Page(write_report(make_run(metrics={"epochs": epochs(0.25, 0.75, 0.5)})))
    assert "epoch 2" in page.words
    assert page.row("top1")[1] == "75.00%"


def test_a_run_started_twice_tells_of_both(make_run):
    starts = [{"date": date, "device": "chip", "command": "freqformer train"} for date in ("monday", "tuesday")]
    page = Page(write_report(make_run(starts=starts)))
    assert page.row("monday")
    assert page.row("tuesday")
    assert page.words.count("freqformer train") == 1


def test_an_evaluation_from_before_its_settings_were_kept(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"AP": 0.25, "AP50": None, **BEST, "data_problems": {"odd": 3}}))
    page = Page(write_report(tmp_path))
    assert page.row("AP")[1] == "0.2500"
    assert page.row("AP50")[1] == "–"
    assert ["", "3", "odd"] in page.rows


def test_huge_pictures_are_made_small(make_run):
    folder = make_run()
    noise = Image.effect_noise((1800, 1200), 80).convert("RGB")
    noise.save(folder / "best.png", compress_level=0)
    (folder / "worst.png").write_bytes(b"no picture")
    page = Page(write_report(folder))
    assert len(page.text) < 3_000_000 < (folder / "best.png").stat().st_size
    (link,) = page.links
    assert link.startswith("data:image/jpeg")


def test_a_damaged_file_is_one_line(make_run, refused):
    folder = make_run()
    (folder / "metrics.json").write_text("{")
    assert "metrics.json is damaged" in refused("report", folder)


def test_a_damaged_record_of_where_it_ran_is_a_sentence(make_run):
    folder = make_run()
    for content in ("[{", "7"):
        (folder / "environment.json").write_text(content)
        assert "It is not known. environment.json is damaged." in Page(write_report(folder)).words


def test_names_of_classes_stay_and_short_rows_are_shown(make_run):
    folder = make_run()
    (folder / "per_class.csv").write_text("class,images,accuracy\n2.10,3,0.123456\n1e-7\n0.50,1,0.5,9,9\n")
    (folder / "examples.csv").write_text("place,image,truth,predicted,probability,loss\nbest 1,0.10,2.10,3.0\n")
    (folder / "confusions.csv").write_text("true,predicted,images\n3.10,0.10,7\n")
    page = Page(write_report(folder))
    assert page.row("3.10") == ["3.10", "0.10", "7"]
    assert page.row("2.10") == ["2.10", "3", "0.1235"]
    assert page.row("1e-7") == ["1e-7", "–", "–"]
    assert page.row("0.50") == ["0.50", "1", "0.5"]
    assert page.row("best 1") == ["best 1", "0.10", "2.10", "3.0", "–", "–"]


def test_a_table_of_the_users_own_makes_no_sweep_of_a_run(make_run):
    folder = make_run()
    (folder / "results.md").write_text("# My notes")
    assert Page(write_report(folder)).row("top1")[1] == "75.00%"


def test_a_folder_without_a_run_is_one_line(tmp_path, refused):
    assert "holds no run" in refused("report", tmp_path)
    assert "holds no run" in refused("report", tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("- 1")
    assert "holds no run" in refused("report", tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_says_where_the_page_lies(make_run, capsys):
    folder = make_run()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder)])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


# Several runs


def test_scores_on_different_data_have_no_best(make_run, tmp_path):
    runs = [make_run(name, ClassificationConfig(arch="gfnet_ti", data_set=name)) for name in ("CIFAR10", "DIGITS")]
    words = Page(compare(runs, tmp_path / "both.html")).words
    assert any("no best is marked" in said for said in words)
    assert not any("★" in said for said in words)


def test_two_runs_side_by_side(make_run, tmp_path):
    pictures = ("confusion.png", "best.png")
    one = make_run("one", pictures=pictures)
    metrics = {"epochs": epochs(0.25, 0.5), "best": {**BEST, "top1": 0.5, "loss": 0.25}}
    two = make_run("$two$", ClassificationConfig(arch="gfnet_ti", lr=0.5), metrics, pictures=pictures)
    page = Page(compare([one, two], tmp_path / "both.html"))
    assert_alone(page)
    header = page.row("run")
    figures = {name: dict(zip(header, page.row(name), strict=True)) for name in ("one", "$two$")}
    assert figures["one"]["top1"] == "75.00% ★"
    assert figures["$two$"]["top1"] == "50.00%"
    assert figures["one"]["loss"] == "0.5000"
    assert figures["$two$"]["loss"] == "0.2500 ★"
    assert figures["one"]["parameters"] == "12,345"
    assert figures["$two$"]["parameters"] == "–"
    assert page.row("lr") == ["lr", "0.25", "0.5"]
    assert not [row for row in page.rows if row and row[0] in ("arch", "epochs", "output_dir")]
    # The curves, and both pictures of both.
    assert page.tags.count("img") == 1 + 2 * len(pictures)


def test_the_legend_has_every_run(make_run):
    folders = {name: make_run(name) for name in ("_hidden", "$a$", "b")}
    figure = draw_curves({name: read_run(folder) for name, folder in folders.items()})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_hidden", r"\$a\$", "b"]


def test_runs_of_one_name_are_told_apart_by_their_paths(make_run, tmp_path):
    folders = [make_run("a/run"), make_run("b/run")]
    page = Page(compare(folders, tmp_path / "both.html"))
    assert page.row(str(folders[0]))
    assert page.row(str(folders[1]))


def test_what_cannot_be_compared_is_one_line(make_run, tmp_path, refused):
    one, two = make_run("one"), make_run("two")
    detection = tmp_path / "detection"
    detection.mkdir()
    (detection / "metrics.json").write_text(json.dumps({"AP": 0.5, **BEST}))
    target = tmp_path / "page.html"
    assert "detection" in refused("report", "compare", one, detection, "--output", target)
    assert "two different runs" in refused("report", "compare", one, one, "--output", target)
    assert "two different runs" in refused("report", "compare", one, two / "../one", "--output", target)
    assert "holds no run" in refused("report", "compare", one, tmp_path, "--output", target)
    nowhere = tmp_path / "nowhere/page.html"
    assert f"{nowhere}: its folder does not exist" in refused("report", "compare", one, two, "--output", nowhere)
    assert not target.exists()
    target.write_text("mine")
    assert "--overwrite" in refused("report", "compare", one, two, "--output", target)
    assert target.read_text() == "mine"
    compare([one, two], target, overwrite=True)
    assert "Results" in Page(target).words


def test_a_sweep_has_its_table_and_picture(tmp_path):
    (tmp_path / "results.md").write_text("# lora on vit\n\nSome <words>.\n\n| task | n |\n|---|---|\n| svhn | 2 |\n")
    (tmp_path / "config.yaml").write_text("tasks: [svhn]\n")
    write_sweep(tmp_path, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.row("svhn") == ["svhn", "2"]
    assert "Some <words>." in page.words
    Image.new("RGB", (9, 9)).save(tmp_path / "results.png")
    assert len(Page(write_report(tmp_path)).links) == 1


def test_a_moved_run_is_repeated_from_where_it_is(make_run, tmp_path):
    shutil.move(make_run(), tmp_path / "moved run")
    page = Page(write_report(tmp_path / "moved run"))
    config = tmp_path / "moved run" / "config.yaml"
    assert f"freqformer train --config '{config}' --output-dir NEW" in page.words
