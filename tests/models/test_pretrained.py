"""`pretrained=True`: the authors' own file, fetched once, read safely."""

import argparse
import functools
import http.server
import os
import subprocess
import sys
import threading

import pytest
import timm
import torch

import freqformer
from freqformer import FreqFormerError
from freqformer.models import model_names


@pytest.fixture
def server(tmp_path):
    """A folder served on loopback; requests are counted."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            type(self).requests += 1
            super().do_GET()

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", tmp_path / "served", Handler
        running.shutdown()
        thread.join()


def official_file(path):
    torch.manual_seed(3)
    model = timm.create_model("test_gfnet").eval()
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("stem.", "patch_embed.").replace("stages.0.blocks.", "blocks.")
        state[key.replace("token_mixer.", "filter.")] = value.flatten(1, 2) if key == "pos_embed" else value
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, path)
    return model


def overlay(url):
    return {"url": (f"{url}/f/?dl=1", "gfnet.pth")}


def test_the_file_is_fetched_once_and_loaded(server, tmp_path, monkeypatch):
    url, folder, handler = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (folder / "f").mkdir()
    # What the link answers is a file without a name, as the authors' does.
    expected = official_file(folder / "f" / "index.html")
    x = torch.randn(1, 3, 32, 32)
    for create in (timm.create_model, freqformer.create_model):
        model = create("test_gfnet", pretrained=True, pretrained_cfg_overlay=overlay(url)).eval()
        assert torch.equal(model(x), expected(x))
        assert model.pretrained_cfg["url"] == overlay(url)["url"]
    assert handler.requests == 1
    assert [p.name for p in (tmp_path / "cache" / "hub" / "checkpoints").iterdir()] == ["gfnet.pth"]
    # Another head, another size and features take it too.
    small = timm.create_model(
        "test_gfnet", pretrained=True, pretrained_cfg_overlay=overlay(url), num_classes=3, img_size=64
    )
    assert small.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    extractor = timm.create_model(
        "test_gfnet", pretrained=True, pretrained_cfg_overlay=overlay(url), features_only=True
    ).eval()
    torch.testing.assert_close(extractor(x)[-1], expected.forward_intermediates(x, intermediates_only=True)[-1])


def test_code_in_a_fetched_file_is_not_run(server, tmp_path, monkeypatch):
    url, folder, _ = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (folder / "f").mkdir()

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": Payload()}, folder / "f" / "index.html")
    with pytest.raises(FreqFormerError, match="code"):
        timm.create_model("test_gfnet", pretrained=True, pretrained_cfg_overlay=overlay(url))
    assert not (tmp_path / "owned").exists()


def test_a_link_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with pytest.raises(FreqFormerError, match=r"127\.0\.0\.1.*checkpoint=FILE") as caught:
        timm.create_model("test_gfnet", pretrained=True, pretrained_cfg_overlay=overlay("http://127.0.0.1:9"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_local_file_may_take_its_place(tmp_path):
    expected = official_file(tmp_path / "own.pth")
    model = timm.create_model("test_gfnet", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth")})
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.eval()(x), expected(x))


# gfnet_h_n is ours, and has none.
@pytest.mark.parametrize("name", [n for n in model_names() if n.startswith("gfnet_") and n != "gfnet_h_n"])
def test_gfnets_links_are_kept(name):
    with torch.device("meta"):
        url, file = timm.create_model(name).pretrained_cfg["url"]
    assert url.startswith("https://")
    assert file == f"{name.replace('_', '-')}.pth"


def test_a_hub_name_is_read_from_hugging_faces_cache(tmp_path):
    """Without a network the hub's client answers from its cache; the same code path fetches online."""
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    model = timm.create_model("test_dfformer", num_classes=4).eval()
    timm.models.save_for_hf(model, snapshot)
    x = torch.ones(1, 3, 32, 32)
    torch.save(model(x), tmp_path / "expected.pt")
    code = (
        "import freqformer, timm, torch, freqformer.models\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "x = torch.ones(1, 3, 32, 32)\n"
        "assert torch.equal(freqformer.load_model('hf-hub:someone/tiny')(x), expected)\n"
        "model = freqformer.create_model('test_dfformer', num_classes=4, checkpoint='hf-hub:someone/tiny').eval()\n"
        "assert torch.equal(model(x), expected)\n"
        "model = timm.create_model('hf-hub:someone/tiny', pretrained=True).eval()\n"
        "assert torch.equal(model(x), expected)\n"
        "try:\n"
        "    freqformer.load_model('hf-hub:someone/absent')\n"
        "except freqformer.FreqFormerError as error:\n"
        "    assert 'someone/absent' in str(error) and len(str(error).splitlines()) == 1\n"
        "else:\n"
        "    raise SystemExit('an absent model was found')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
