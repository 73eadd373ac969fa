"""The encoders against forwards written out here, from small files in the formats that the authors publish."""

import dataclasses
import hashlib
import http.server
import pickle
import socket
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from freqformer import FreqFormerError
from freqformer.adapters import encoders
from freqformer.adapters.encoders import ENCODERS, make_encoder

DEPTH, WIDTH, HEADS, PATCH, GRID = 2, 48, 4, 8, 4
TINY = {"depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS, "patch_size": PATCH}
SIZE = PATCH * GRID
TOKENS = GRID**2 + 1
FILES = {
    "sup_vitb16_imagenet21k": "imagenet21k_ViT-B_16.npz",
    "sup_vitl16_imagenet21k": "imagenet21k_ViT-L_16.npz",
    "mae_vitb16": "mae_pretrain_vit_base.pth",
    "mocov3_vitb16": "vit-b-300ep.pth.tar",
    "clip_vitb16": "ViT-B-16.pt",
}


def random(*shape, scale=0.2):
    return torch.randn(shape) * scale


# What the files hold, each in its own layout.


def jax_arrays():
    heads = (HEADS, WIDTH // HEADS)
    arrays = {
        "cls": random(1, 1, WIDTH),
        "embedding/kernel": random(PATCH, PATCH, 3, WIDTH),
        "embedding/bias": random(WIDTH),
        "Transformer/posembed_input/pos_embedding": random(1, TOKENS, WIDTH),
        "Transformer/encoder_norm/scale": 1 + random(WIDTH),
        "Transformer/encoder_norm/bias": random(WIDTH),
        # As many classes as a test asks for: a head of the file must not be taken all the same.
        "head/kernel": random(WIDTH, 5),
        "head/bias": random(5),
        "pre_logits/kernel": random(WIDTH, WIDTH),
        "pre_logits/bias": random(WIDTH),
    }
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{block}/{norm}/scale"] = 1 + random(WIDTH)
            arrays[f"{block}/{norm}/bias"] = random(WIDTH)
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = random(WIDTH, *heads)
            arrays[f"{attention}/{part}/bias"] = random(*heads)
        arrays[f"{attention}/out/kernel"] = random(*heads, WIDTH)
        arrays[f"{attention}/out/bias"] = random(WIDTH)
        for j, (before, after) in enumerate([(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]):
            arrays[f"{block}/MlpBlock_3/Dense_{j}/kernel"] = random(before, after)
            arrays[f"{block}/MlpBlock_3/Dense_{j}/bias"] = random(after)
    return arrays


def vit_tensors():
    state = {
        "cls_token": random(1, 1, WIDTH),
        "pos_embed": random(1, TOKENS, WIDTH),
        "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(WIDTH),
        "norm.weight": 1 + random(WIDTH),
        "norm.bias": random(WIDTH),
    }
    for i in range(DEPTH):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = 1 + random(WIDTH)
            state[f"blocks.{i}.{norm}.bias"] = random(WIDTH)
        for name, after, before in [
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ]:
            state[f"blocks.{i}.{name}.weight"] = random(after, before)
            state[f"blocks.{i}.{name}.bias"] = random(after)
    return state


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x), self.ln_1(x), self.ln_1(x))[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.resblocks = nn.Sequential(*[ResidualBlock(width) for _ in range(DEPTH)])

    def forward(self, x):
        return self.resblocks(x)


class Tower(nn.Module):
    """CLIP's image tower, by its attribute names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(random(WIDTH))
        self.positional_embedding = nn.Parameter(random(TOKENS, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH)
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(random(WIDTH, 5))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x[:, 0])


class Clip(nn.Module):
    """Both towers: the text's has names that end like the image's."""

    def __init__(self):
        super().__init__()
        self.visual = Tower()
        self.transformer = Transformer(16)
        self.token_embedding = nn.Embedding(11, 16)
        self.positional_embedding = nn.Parameter(random(7, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(random(16, 5))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("input_resolution", torch.tensor(SIZE))
        for value in self.parameters():
            nn.init.normal_(value, 0.1, 0.3)

    def forward(self, x):
        return self.visual(x)


def save_script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and yet what the published file is
        torch.jit.save(torch.jit.script(module), path)


def write(name, root):
    """Write an encoder's file, and return what it holds, in float64."""
    torch.manual_seed(0)
    root.mkdir(exist_ok=True)
    path = root / FILES[name]
    if name.startswith("sup"):
        content = jax_arrays()
        np.savez(path, **{key: value.numpy() for key, value in content.items()})
    elif name.startswith("mae"):
        content = vit_tensors()
        torch.save({"model": content}, path)
    elif name.startswith("moco"):
        content = vit_tensors()
        mlp = {"head.0.weight": random(7, WIDTH), "head.1.running_mean": random(7), "head.3.weight": random(5, 7)}
        state = {f"module.base_encoder.{key}": value for key, value in {**content, **mlp}.items()}
        state |= {f"module.momentum_encoder.{key}": random(*value.shape) for key, value in content.items()}
        state["module.predictor.0.weight"] = random(5, 5)
        optimizer = {"state": {0: {"step": 3, "exp_avg": random(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        torch.save({"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": optimizer}, path)
    else:
        clip = Clip().half()
        content = clip.visual.state_dict()
        save_script(clip, path)
    return {key: value.double() for key, value in content.items()}


# The forwards, written out from the files' own names.


def norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def attend(q, k, v):
    """(B, N, heads, C) each."""
    weights = torch.einsum("bnhc,bmhc->bhnm", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhnm,bmhc->bnhc", weights, v)


def tokens_of(x, kernel, bias, first, positions):
    """Class token and patches with positions; the kernel is (C, 3, height, width)."""
    B, _, H, W = x.shape
    patches = x.reshape(B, 3, H // PATCH, PATCH, W // PATCH, PATCH)
    patches = torch.einsum("bchpwq,dcpq->bhwd", patches, kernel).flatten(1, 2) + bias
    return torch.cat([first.reshape(1, 1, -1).expand(B, 1, -1), patches], 1) + positions.reshape(1, -1, WIDTH)


def jax_forward(w, x, positions):
    x = tokens_of(x, w["embedding/kernel"].permute(3, 2, 0, 1), w["embedding/bias"], w["cls"], positions)
    for i in range(DEPTH):
        b = {key.split("/", 2)[2]: value for key, value in w.items() if f"encoderblock_{i}/" in key}
        y = norm(x, b["LayerNorm_0/scale"], b["LayerNorm_0/bias"], 1e-6)
        a = "MultiHeadDotProductAttention_1"
        qkv = [
            torch.einsum("bnd,dhc->bnhc", y, b[f"{a}/{part}/kernel"]) + b[f"{a}/{part}/bias"]
            for part in ("query", "key", "value")
        ]
        x = x + torch.einsum("bnhc,hcd->bnd", attend(*qkv), b[f"{a}/out/kernel"]) + b[f"{a}/out/bias"]
        y = norm(x, b["LayerNorm_2/scale"], b["LayerNorm_2/bias"], 1e-6)
        y = F.gelu(y @ b["MlpBlock_3/Dense_0/kernel"] + b["MlpBlock_3/Dense_0/bias"])
        x = x + y @ b["MlpBlock_3/Dense_1/kernel"] + b["MlpBlock_3/Dense_1/bias"]
    return norm(x[:, 0], w["Transformer/encoder_norm/scale"], w["Transformer/encoder_norm/bias"], 1e-6)


def torch_block(x, b, names, act, eps):
    """A block of MAE, MoCo or CLIP, whose names of norms and maps are (norm1, qkv, proj, norm2, fc1, fc2)."""
    norm1, qkv, proj, norm2, fc1, fc2 = [(b[weight], b[bias]) for weight, bias in names]
    parts = (norm(x, *norm1, eps) @ qkv[0].T + qkv[1]).reshape(*x.shape[:2], 3, HEADS, -1).unbind(2)
    x = x + attend(*parts).flatten(2) @ proj[0].T + proj[1]
    return x + act(norm(x, *norm2, eps) @ fc1[0].T + fc1[1]) @ fc2[0].T + fc2[1]


def vit_blocks(w, x, positions):
    x = tokens_of(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], w["cls_token"], positions)
    names = [(f"{n}.weight", f"{n}.bias") for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    for i in range(DEPTH):
        block = {key.split(".", 2)[2]: value for key, value in w.items() if key.startswith(f"blocks.{i}.")}
        x = torch_block(x, block, names, F.gelu, 1e-6)
    return x


def mae_forward(w, x, positions):
    return norm(vit_blocks(w, x, positions)[:, 1:].mean(1), w["norm.weight"], w["norm.bias"], 1e-6)


def moco_forward(w, x, positions):
    return norm(vit_blocks(w, x, positions)[:, 0], w["norm.weight"], w["norm.bias"], 1e-6)


def clip_forward(w, x, positions):
    x = tokens_of(x, w["conv1.weight"], torch.zeros(WIDTH).double(), w["class_embedding"], positions)
    x = norm(x, w["ln_pre.weight"], w["ln_pre.bias"], 1e-5)
    names = [(f"{n}.weight", f"{n}.bias") for n in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
    names.insert(1, ("attn.in_proj_weight", "attn.in_proj_bias"))
    for i in range(DEPTH):
        prefix = f"transformer.resblocks.{i}."
        block = {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)}
        x = torch_block(x, block, names, lambda y: y / (1 + torch.exp(-1.702 * y)), 1e-5)
    return norm(x[:, 0], w["ln_post.weight"], w["ln_post.bias"], 1e-5)


FORWARDS = {
    "sup_vitb16_imagenet21k": ("Transformer/posembed_input/pos_embedding", jax_forward),
    "sup_vitl16_imagenet21k": ("Transformer/posembed_input/pos_embedding", jax_forward),
    "mae_vitb16": ("pos_embed", mae_forward),
    "mocov3_vitb16": ("pos_embed", moco_forward),
    "clip_vitb16": ("positional_embedding", clip_forward),
}


def features(model, x):
    with torch.no_grad():
        model = model.double().eval()
        return model.forward_head(model.forward_features(x), pre_logits=True)


def refuse(call, *words):
    with pytest.raises(FreqFormerError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message
    return message


@pytest.mark.parametrize("size", [None, SIZE, (48, 24), (64, 16), 16], ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_the_network_is_the_one_of_the_file(tmp_path, name, size):
    held = write(name, tmp_path)
    # (64, 16) has as many patches as the file's square.
    model = make_encoder(name, num_classes=5, img_size=size or SIZE, weights_root=tmp_path, **TINY)
    height, width = (size or SIZE, size or SIZE) if not isinstance(size, tuple) else size
    key, forward = FORWARDS[name]
    positions = held[key].reshape(TOKENS, WIDTH)
    if (height, width) != (SIZE, SIZE):
        grid = positions[1:].float().T.reshape(1, WIDTH, GRID, GRID)
        grid = F.interpolate(grid, (height // PATCH, width // PATCH), mode="bicubic", antialias=True)
        positions = torch.cat([positions[:1], grid.flatten(2)[0].T.double()])
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    # timm resamples in float32.
    tolerance = 1e-9 if size in (None, SIZE) else 1e-5
    torch.testing.assert_close(features(model, x), forward(held, x, positions), rtol=tolerance, atol=tolerance)
    assert model(x).shape == (2, 5)
    assert model.pretrained_cfg["input_size"] == (3, height, width)


def test_the_forward_of_clip_here_is_that_of_the_scripted_module(tmp_path):
    held = write("clip_vitb16", tmp_path)
    torch.manual_seed(0)
    clip = Clip().half().double()
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    torch.testing.assert_close(clip_forward(held, x, held["positional_embedding"]), clip(x))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_classifier_is_new(tmp_path, name):
    write(name, tmp_path)
    torch.manual_seed(1)
    model = make_encoder(name, num_classes=5, img_size=SIZE, weights_root=tmp_path, **TINY)
    assert model.training
    assert model.head.weight.std() < 0.05
    assert not model.head.bias.any()
    assert all(value.requires_grad and value.dtype == torch.float32 for value in model.parameters())
    features_alone = make_encoder(name, num_classes=0, img_size=SIZE, weights_root=tmp_path, **TINY)
    assert not list(features_alone.head.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_images_are_prepared_as_upstream_does(name):
    model = make_encoder(name, num_classes=3, img_size=(48, 32), pretrained=False, **TINY)
    cfg = timm.data.resolve_model_data_config(model)
    assert cfg == {
        "input_size": (3, 48, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    assert model.pretrained_cfg["num_classes"] == 3
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.head
    assert model.get_submodule(model.pretrained_cfg["first_conv"]) is model.patch_embed.proj
    assert timm.is_model(model.pretrained_cfg["architecture"])


@pytest.mark.parametrize("name", ENCODERS)
def test_the_networks_of_the_papers(name):
    with torch.device("meta"):
        model = make_encoder(name, num_classes=0, pretrained=False)
    large = "vitl" in name
    assert (len(model.blocks), model.embed_dim) == ((24, 1024) if large else (12, 768))
    assert model.patch_embed.patch_size == (16, 16)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    # ViT-B/16 and ViT-L/16 without a classifier; CLIP's has a norm more and no bias of its patches.
    assert sum(value.numel() for value in model.parameters()) == {True: 303_301_632}.get(large, 85_798_656) + 768 * (
        name == "clip_vitb16"
    )


def test_the_names_of_the_files(tmp_path):
    assert set(ENCODERS) == set(FILES)
    held = write("sup_vitb16_imagenet21k", tmp_path)
    (tmp_path / "imagenet21k_ViT-B_16.npz").rename(tmp_path / "ViT-B_16.npz")
    model = make_encoder("sup_vitb16_imagenet21k", num_classes=2, img_size=SIZE, weights_root=str(tmp_path), **TINY)
    assert torch.equal(model.cls_token, held["cls"].float())
    refuse(lambda: make_encoder("sup_vitb8", num_classes=2), "sup_vitb8", "clip_vitb16")
    refuse(lambda: make_encoder("mae_vitb16", num_classes=2, width=3), "width")


def test_the_folder_unless_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = write("mae_vitb16", tmp_path / "pretrained")
    model = make_encoder("mae_vitb16", num_classes=2, img_size=SIZE, **TINY)
    assert torch.equal(model.fc_norm.weight, held["norm.weight"].float())


def test_the_decoder_of_a_file_of_pretraining_is_left_out(tmp_path):
    held = write("mae_vitb16", tmp_path)
    more = {"mask_token": random(1, 1, 8), "decoder_pos_embed": random(1, TOKENS, 8), "decoder_norm.weight": random(8)}
    torch.save({"model": {**more, **held}}, tmp_path / FILES["mae_vitb16"])
    model = make_encoder("mae_vitb16", num_classes=2, img_size=SIZE, weights_root=tmp_path, **TINY)
    assert torch.equal(model.pos_embed, held["pos_embed"].float())


def test_pooling_can_be_another(tmp_path):
    held = write("mocov3_vitb16", tmp_path)
    keywords = {"num_classes": 2, "img_size": SIZE, "weights_root": tmp_path, **TINY, "global_pool": "avg"}
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    model = make_encoder("mocov3_vitb16", **keywords)
    torch.testing.assert_close(features(model, x), mae_forward(held, x, held["pos_embed"]))
    # timm's reader of arrays fills the norm before pooling alone.
    write("sup_vitb16_imagenet21k", tmp_path)
    refuse(lambda: make_encoder("sup_vitb16_imagenet21k", **keywords), "sup_vitb16")


# Files that do not fit.


def missing(state):
    state.pop(next(key for key in state if "1" in key and ("norm2.bias" in key or "LayerNorm_2/bias" in key)))


def unexpected(state):
    prefix = "module.base_encoder." if any("base_encoder" in key for key in state) else ""
    state[f"{prefix}blocks.0.ls1.gamma"] = torch.ones(WIDTH)


def misshapen(state):
    # Of one number, which a copy would spread over all.
    key = next(key for key in state if key.endswith(("blocks.0.norm1.bias", "encoderblock_0/LayerNorm_0/bias")))
    state[key] = state[key][:1]


def other_patches(state):
    key = next(key for key, value in state.items() if value.ndim == 4)
    axes = (0, 1) if "/" in key else (2, 3)
    state[key] = state[key].repeat_interleave(2, axes[0]).repeat_interleave(2, axes[1])


def no_square(state):
    key = next(key for key in state if "pos_embed" in key)
    state[key] = state[key][:, :-1]


def no_positions(state):
    state.pop(next(key for key in state if "pos_embed" in key))


def deeper(state):
    for key in [key for key in state if "blocks.1." in key or "encoderblock_1/" in key]:
        state[key.replace("blocks.1.", "blocks.2.").replace("encoderblock_1/", "encoderblock_2/")] = state[key]


@pytest.mark.parametrize("change", [missing, unexpected, misshapen, other_patches, no_square, no_positions, deeper])
@pytest.mark.parametrize("name", ["sup_vitb16_imagenet21k", "mae_vitb16", "mocov3_vitb16"])
def test_what_does_not_fit_is_refused(tmp_path, name, change):
    write(name, tmp_path)
    path = tmp_path / FILES[name]
    if path.suffix == ".npz":
        state = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
        change(state)
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        content = torch.load(path, weights_only=True)
        change(content["model"] if "model" in content else content["state_dict"])
        torch.save(content, path)
    refuse(lambda: make_encoder(name, num_classes=5, img_size=SIZE, weights_root=tmp_path, **TINY), path, name)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_of_another_size_of_network_is_refused(tmp_path, name):
    write(name, tmp_path)
    for change in ({"depth": 1}, {"depth": 3}, {"embed_dim": 24}, {"patch_size": 16}, {"init_values": 1e-5}):
        keywords = {**TINY, "num_classes": 5, "img_size": SIZE, "weights_root": tmp_path, **change}
        refuse(lambda keywords=keywords: make_encoder(name, **keywords), name, FILES[name])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_cut_short_or_of_another_kind_is_refused(tmp_path, name):
    write(name, tmp_path)
    path = tmp_path / FILES[name]
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-40], b"", b"not a file of weights"):
        path.write_bytes(content)
        refuse(lambda: make_encoder(name, num_classes=5, img_size=SIZE, weights_root=tmp_path, **TINY), path)
    torch.save({"model": {"weight": torch.ones(3)}}, path)
    refuse(lambda: make_encoder(name, num_classes=5, img_size=SIZE, weights_root=tmp_path, **TINY), path)


class Attack:
    """Pickled, it touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ENCODERS)
def test_code_in_a_file_is_not_run(tmp_path, name):
    write(name, tmp_path)
    path, marker = tmp_path / FILES[name], tmp_path / "marker"
    attack = Attack(marker)
    if path.suffix == ".npz":
        np.savez(path, **dict(np.load(path)), extra=np.array([attack], dtype=object))
    elif path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            content = {record: archive.read(record) for record in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for record, data in content.items():
                archive.writestr(record, pickle.dumps(attack, 2) if record.endswith("/data.pkl") else data)
    else:
        torch.save({**torch.load(path, weights_only=True), "extra": attack}, path)
    refuse(lambda: make_encoder(name, num_classes=5, img_size=SIZE, weights_root=tmp_path, **TINY), path)
    assert not marker.exists()


# Fetching.


@pytest.fixture
def server(tmp_path):
    """A folder on loopback; the last of its answers can be cut short."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        cut = 0
        asked: tuple[str, ...] = ()

        def do_GET(self):
            type(self).asked += (self.path,)
            path = served / self.path.rsplit("/", 1)[-1]
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - self.cut])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", served, Handler
        running.shutdown()
        thread.join()


def link_to(monkeypatch, name, link):
    monkeypatch.setitem(encoders._ENCODERS, name, dataclasses.replace(encoders._ENCODERS[name], link=link))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_absent_file_is_fetched_once(tmp_path, server, monkeypatch, name):
    url, served, handler = server
    write(name, served)
    digest = hashlib.sha256((served / FILES[name]).read_bytes()).hexdigest()
    (served / FILES[name]).rename(served / "published")
    link_to(monkeypatch, name, f"{url}/{digest}/published")
    root = tmp_path / "some" / "where"
    for _ in range(2):
        make_encoder(name, num_classes=5, img_size=SIZE, weights_root=root, **TINY)
    assert [path.name for path in root.iterdir()] == [FILES[name]]
    assert (root / FILES[name]).read_bytes() == (served / "published").read_bytes()
    assert handler.asked == (f"/{digest}/published",)


@pytest.mark.parametrize("fault", ["absent", "cut", "digest", "nobody"])
def test_what_cannot_be_fetched_leaves_nothing(tmp_path, server, monkeypatch, fault):
    url, served, handler = server
    name = "clip_vitb16"
    write(name, served)
    if fault == "nobody":
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
    digest = f"/{'0' * 64}" if fault == "digest" else ""
    handler.cut = 100 if fault == "cut" else 0
    link = f"{url}{digest}/{'nothing' if fault == 'absent' else FILES[name]}"
    link_to(monkeypatch, name, link)
    root = tmp_path / "root"
    message = refuse(
        lambda: make_encoder(name, num_classes=5, weights_root=root, **TINY), FILES[name], root, link, "--weights-root"
    )
    assert {"absent": "404", "cut": "bytes", "digest": "SHA-256", "nobody": "refused"}[fault] in message
    assert not list(root.iterdir())


def test_every_name_looked_for_is_said(tmp_path, monkeypatch):
    link_to(monkeypatch, "sup_vitl16_imagenet21k", "http://127.0.0.1:9/ViT-L_16.npz")
    refuse(
        lambda: make_encoder("sup_vitl16_imagenet21k", num_classes=5, weights_root=tmp_path, **TINY),
        "imagenet21k_ViT-L_16.npz or ViT-L_16.npz",
        tmp_path,
    )
    (tmp_path / "file").touch()
    refuse(lambda: make_encoder("mae_vitb16", num_classes=5, weights_root=tmp_path / "file", **TINY), "file", "folder")
