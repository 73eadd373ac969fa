"""The page in a real browser, with good and hostile uploads; and its functions, called without it.

The pictures of the page are kept in ``artifacts/`` at the repository's root, or in $FREQFORMER_ARTIFACTS.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freqformer.demo.uploads import MAX_BYTES
from freqformer.tools import digits_config

pytestmark = pytest.mark.slow

ARTIFACTS = Path(os.environ.get("FREQFORMER_ARTIFACTS") or Path(__file__).resolve().parents[2] / "artifacts")
WAIT = 60_000
# What the browser says of itself or of a refused upload, and not of the page.
HARMLESS = ("status of 401", "status of 413", "Method not implemented")


@dataclass
class Demo:
    """A running ``freqformer demo``."""

    process: subprocess.Popen
    url: str
    folder: Path
    errors: Path


@contextmanager
def serving(checkpoint, folder, *, attacked=False, **environ):
    """A ``freqformer demo`` of a checkpoint; it must end orderly, and quietly unless it has been attacked."""
    folder.mkdir()
    errors = folder / "stderr.txt"
    words = [sys.executable, "-m", "freqformer", "demo", str(checkpoint), "--port", "0"]
    with open(errors, "w") as stderr:
        # Its temporary files are its own, and a proxy that does not exist would be found out.
        more = {"TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:9", **environ}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **more}, start_new_session=True
        )
    try:
        line = process.stdout.readline()
        found = re.search(r"is at (http://\S+/) ", line)
        assert found, line + errors.read_text()
        yield Demo(process, found[1], folder, errors)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        process.stdout.close()
    assert code == 128 + signal.SIGTERM
    *before, last = errors.read_text().splitlines()
    assert last == "freqformer: stopped by SIGTERM"
    assert attacked or not before
    assert not list(folder.glob("freqformer-demo-*")), "uploads are left behind"


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A quickstart cut down to some seconds."""
    from freqformer.engine import run

    folder = tmp_path_factory.mktemp("runs") / "digits"
    size = {"patch_size": 2, "embed_dim": 48, "depth": 2, "spectral_depth": 1}
    run(replace(digits_config(str(folder)), model_args=size, epochs=5, lr=4e-3, num_workers=0))
    return folder


@pytest.fixture(scope="module")
def demo(digits, tmp_path_factory):
    """The demo of the digits."""
    with serving(digits, tmp_path_factory.mktemp("demo") / "tmp", attacked=True) as running:
        yield running


@contextmanager
def opened(browser, demo, login=None):
    """The page, once it has shown its first example; it must ask no other host, and complain of nothing."""
    ARTIFACTS.mkdir(exist_ok=True)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(demo.url)
    if login:
        page.get_by_label("username").fill(login[0])
        page.get_by_label("password").fill(login[1])
        page.get_by_role("button", name="Login").click()
    page.wait_for_selector("#given img", timeout=WAIT)
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((demo.url, "data:", "blob:"))] == []
    assert [words for words in complaints if not any(known in words for known in HARMLESS)] == []


@pytest.fixture
def page(chromium, demo):
    """The page of the digits."""
    with opened(chromium, demo) as page:
        yield page


def source(page, name):
    return page.locator(f"#{name} img").get_attribute("src")


def answer(page, name="of-given"):
    """The class that the model finds most probable."""
    return page.locator(f"#{name} [data-testid=label-output-value]").inner_text().strip()


def send(page, path):
    """Choose a file, in the place of the image that is there."""
    if page.locator("#upload img").count():
        page.locator("#upload").get_by_label(re.compile("clear|remove", re.I)).click()
        page.wait_for_selector("#given img", state="detached", timeout=WAIT)
    page.locator("#upload input[type=file]").set_input_files(str(path))


def set_slider(page, name, value):
    """Type a value beside a slider."""
    number = page.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def changed(page, name, before):
    """Wait until a picture is another one."""
    page.wait_for_function(
        "([name, before]) => { const image = document.querySelector(`#${name} img`);"
        " return image && image.getAttribute('src') !== before; }",
        arg=[name, before],
        timeout=WAIT,
    )


@pytest.fixture
def digit(tmp_path):
    """A held-out digit in a file, large, and what it is."""
    from freqformer.data import open_images

    held_out = open_images("DIGITS", None, "val")
    place = list(held_out.targets).index(0)
    held_out.load(place).resize((160, 160), Image.Resampling.BICUBIC).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_an_upload_is_read_and_a_slider_changes_what_is_left(page, digit):
    send(page, digit)
    page.wait_for_selector("#given img", timeout=WAIT)
    assert answer(page) == "0"
    assert answer(page, "of-left") == "0"
    before = {name: source(page, name) for name in ("left", "left-spectrum", "given")}
    prediction = page.locator("#of-left").inner_text()
    set_slider(page, "high", 0.2)
    changed(page, "left", before["left"])
    changed(page, "left-spectrum", before["left-spectrum"])
    assert source(page, "given") == before["given"]
    assert answer(page) == "0"
    page.wait_for_function(
        "before => document.querySelector('#of-left').innerText !== before", arg=prediction, timeout=WAIT
    )
    # The handle itself, from the keyboard.
    before = source(page, "left")
    page.locator("#high input[type=range]").press("End")
    changed(page, "left", before)
    page.wait_for_selector("#filters img", timeout=WAIT)
    page.screenshot(path=ARTIFACTS / "demo-classifier.png", full_page=True)


def test_the_filters_and_the_attention_are_shown(page):
    page.wait_for_selector("#filters img", timeout=WAIT)
    page.get_by_role("tab", name="Attention").click()
    page.wait_for_selector("#attention img", timeout=WAIT)


def test_an_example_is_chosen_by_a_click(page):
    before = source(page, "given")
    page.get_by_role("gridcell").or_(page.locator(".gallery-item")).nth(2).click()
    changed(page, "given", before)


def test_a_band_that_keeps_nothing_is_explained(page):
    set_slider(page, "high", 0.2)
    set_slider(page, "low", 0.5)
    page.get_by_text("nothing would be kept").wait_for(timeout=WAIT)


def write_hostile(folder):
    """Files that claim to be images, and what the page says of each."""
    (folder / "text.png").write_text("this is no image\n")
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    Image.new("RGB", (12_001, 700)).save(folder / "wide.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-500])
    Image.new("RGB", (1, 5000)).save(folder / "line.png")
    return {
        "text.png": "not an image",
        "wide.png": "12001×700",
        "drawing.svg": "not an image",
        "cut.jpg": "truncated",
        "line.png": "1×5000",
    }


def test_hostile_files_are_refused_in_words_and_the_page_goes_on(page, digit, tmp_path):
    for name, words in write_hostile(tmp_path).items():
        send(page, tmp_path / name)
        page.locator("#status .bad").get_by_text(words).wait_for(timeout=WAIT)
        # The words may come a moment before the picture is taken away.
        page.wait_for_selector("#upload img", state="detached", timeout=WAIT)
        assert page.locator("#given img").count() == 0
        text = page.inner_text("body")
        assert "Traceback" not in text
        assert str(tmp_path) not in text
    page.screenshot(path=ARTIFACTS / "demo-refused.png")
    send(page, digit)
    page.wait_for_selector("#given img", timeout=WAIT)
    assert answer(page) == "0"
    assert page.locator("#status .bad").count() == 0


def test_a_file_beyond_the_limit_does_not_arrive(page, demo, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(MAX_BYTES + 1))
    send(page, tmp_path / "large.png")
    page.get_by_text(re.compile("maximum allowed size", re.I)).first.wait_for(timeout=WAIT)
    kept = [path.stat().st_size for path in demo.folder.rglob("*") if path.is_file()]
    assert max(kept, default=0) < MAX_BYTES


def ask(url, content=None):
    """The status and the text that the server answers, to a GET or with content to a POST."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["file", "address"])
def test_the_pages_functions_take_uploads_alone(tmp_path_factory, demo, kind, marked):
    """Whoever calls them without the page may not have them open a file of the machine, nor an address."""
    secret = tmp_path_factory.mktemp("private") / "secret.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(secret)
    path = str(secret) if kind == "file" else "http://203.0.113.1/secret.png"
    payload = {"path": path, **({"meta": {"_type": "gradio.FileData"}} if marked else {})}
    tried = []
    for event in json.loads(ask(demo.url + "config")[1])["dependencies"]:
        if len(event["inputs"]) not in (1, 4):
            continue
        session = f"{event['id']}{kind}{marked}"
        values = [payload, 0, 1.42, 0.3][: len(event["inputs"])]
        ask(demo.url + "gradio_api/queue/join", {"data": values, "fn_index": event["id"], "session_hash": session})
        said = ask(demo.url + f"gradio_api/queue/data?session_hash={session}")[1]
        done = next(json.loads(line[6:]) for line in said.splitlines() if '"process_completed"' in line)
        assert ".png" not in json.dumps(done), done
        tried.append(done["success"])
    assert len(tried) >= 2
    assert not (marked and any(tried))


@pytest.mark.parametrize("which", ["/etc/passwd", "config.json"])
def test_files_of_the_machine_are_not_served(demo, digits, which):
    path = which if which.startswith("/") else digits / which
    status, text = ask(demo.url + f"gradio_api/file={urllib.parse.quote(str(path))}")
    assert status in (403, 404)
    assert "root:" not in text
    assert "freqformer_n" not in text


def test_errors_that_nobody_expected_are_told_without_their_words(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    from freqformer.demo import app, load

    def broken(*_):
        raise RuntimeError("/home/ann/secret")

    monkeypatch.setattr(app, "look", broken)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    page = app.build(load(digits), {"one": tmp_path / "a.png"}, tmp_path)
    (looked,) = (event.fn for event in page.fns.values() if event.name == "looked")
    shown = list(looked({"path": str(tmp_path / "a.png")}, 0, 1, 0.3).values())
    assert "Something went wrong" in shown[0]
    assert "secret" not in str(shown)


def test_a_detector_draws_what_it_finds_for_those_with_the_password(chromium, make_detector, tmp_path):
    """One of its classes has a name that cannot be decoded; a segmenter's page is in test_page.py."""
    run = make_detector(tmp_path / "run", label_names=("box", "sur\udcffr"))
    environ = {"FREQFORMER_DEMO_AUTH": "ann:secret"}
    with serving(run, tmp_path / "tmp", **environ) as demo:
        assert ask(demo.url + "config")[0] == 401
        with opened(chromium, demo, ("ann", "secret")) as page:
            before = source(page, "of-left")
            page.get_by_role("button", name="Low ones alone").click()
            changed(page, "of-left", before)
            before = source(page, "of-given")
            set_slider(page, "score", 0)
            changed(page, "of-given", before)
            assert page.get_by_text(r"sur\udcffr").first.is_visible()
            page.screenshot(path=ARTIFACTS / "demo-detector.png", full_page=True)
