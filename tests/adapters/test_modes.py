"""Adapted models under training modes, precisions, devices, copies, compilers and exporters."""

import copy
import pickle

import pytest
import torch
from torch import nn

from freqformer import adapters

METHODS = {
    "filter2d": {},
    "filter1d": {},
    "ssf": {},
    "bias": {},
    "adapter": {},
    "rlrr": {},
    "vpt_deep": {"num_tokens": 2},
    "lora": {"r": 2},
}


def outputs(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", METHODS)
def test_the_frozen_part_is_in_evaluation_mode(small, images, name):
    model = small(proj_drop_rate=0.5, drop_path_rate=0.5, drop_rate=0.5)
    handle = adapters.attach(model, name, **METHODS[name])
    head = adapters.attach(model, "linear")
    adapters.set_mode(model, True)
    trains = lambda module: any(p.requires_grad for p in module.parameters()) or not list(module.parameters())  # noqa: E731
    own = {id(m) for h in (handle, head) for module in h.modules() for m in module.modules() if trains(m)}
    assert all(module.training == (id(module) in own) for module in model.modules())
    assert model.head_drop.training
    assert not any(
        isinstance(m, nn.Dropout) and m.training for b in model.blocks for m in b.modules() if id(m) not in own
    )
    x = images(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    trained = {id(p) for h in (handle, head) for p in h.parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    model(x).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == len(trained)
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, state[key])}
    assert moved <= {key for key, parameter in model.named_parameters() if id(parameter) in trained}
    adapters.set_mode(model, False)
    assert not any(module.training for module in model.modules())


def test_statistics_of_a_frozen_batch_norm_stay(small, images):
    model = small(dtype=torch.float32)
    model.norm_pre = _ByChannel(48)
    adapters.attach(model, "filter2d")
    adapters.set_mode(model, True)
    before = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    assert before
    model(images(model)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers() if "running" in key)


class _ByChannel(nn.BatchNorm1d):
    """Batch norm of tokens (B, N, C)."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("name", METHODS)
def test_copies_are_models_of_their_own(small, images, move, name):
    model = small()
    x = images(model)
    bare = outputs(model, x)
    handle = move(adapters.attach(model, name, **METHODS[name]))
    y = outputs(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(other, x), y)
        twin = adapters.handles(other)[0]
        assert twin.model is other
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in handle.parameters()}
        move(twin, by=0.5, seed=5)
        assert not torch.equal(outputs(other, x), y)
        assert torch.equal(outputs(model, x), y)
        twin.detach()
        assert torch.equal(outputs(other, x), bare) or name == "bias"
        assert torch.equal(outputs(model, x), y)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(outputs(averaged, x), y)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing_changes_no_gradient(small, images, move, name):
    grads = []
    for enable in (False, True):
        model = small()
        torch.manual_seed(0)
        handle = move(adapters.attach(model, name, **METHODS[name]))
        model.set_grad_checkpointing(enable)
        adapters.set_mode(model, True)
        model(images(model)).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in handle.parameters()])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision(small, images, move, name, dtype):
    model = small(dtype=torch.float32)
    x = images(model)
    full = move(adapters.attach(model, name, **METHODS[name]))
    y = outputs(model, x)
    bound = 0.1 * float(y.abs().max())
    # Autocast; weights halved after attaching; attached to half weights, where what is trained stays float32.
    with torch.autocast("cpu", dtype):
        loss = model(x).float()
    assert float((loss.detach() - y).abs().max()) <= bound
    loss.sum().backward()
    cast = copy.deepcopy(model).to(dtype)
    assert float((outputs(cast, x.to(dtype)).float() - y).abs().max()) <= bound
    half = small(dtype=dtype)
    handle = adapters.attach(half, name, **METHODS[name])
    handle.load_state_dict(full.state_dict())
    z = half(x.to(dtype))
    assert z.dtype == dtype
    assert float((z.detach().float() - y).abs().max()) <= bound
    z.float().sum().backward()
    assert all(parameter.grad is not None for parameter in handle.parameters())
    if name != "bias":
        assert all(parameter.dtype == torch.float32 for parameter in handle.parameters())


def test_devices_and_dtypes_are_followed(small, images, move):
    model = small(dtype=torch.float32)
    x = images(model)
    for name, options in METHODS.items():
        move(adapters.attach(model, name, **options)) if name != "rlrr" else None
    y = outputs(model, x)
    assert torch.allclose(outputs(model.double(), x.double()).float(), y, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(model(x.double()).float(), y, atol=1e-4)
    assert model.to("meta")(x.double().to("meta")).shape == y.shape


@pytest.mark.parametrize("name", METHODS)
def test_functional_parameters(small, images, move, name):
    model = small(dtype=torch.float32)
    move(adapters.attach(model, name, **METHODS[name]))
    x = images(model)
    double = {key: value.double() for key, value in model.state_dict().items()}
    with torch.no_grad():
        y = torch.func.functional_call(model, double, (x.double(),))
    assert y.dtype == torch.float64
    assert torch.allclose(y.float(), outputs(model, x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compiled(small, images, move, name):
    model = small(dtype=torch.float32, depth=1)
    handle = move(adapters.attach(model, name, **METHODS[name]))
    x = images(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = model(x)
    z = compiled(x)
    assert torch.allclose(z, y, atol=1e-5)
    wanted = torch.autograd.grad(y.square().sum(), list(handle.parameters()))
    found = torch.autograd.grad(z.square().sum(), list(handle.parameters()))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))
    if handle.foldable:
        handle.fold()
        torch._dynamo.reset()
        assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x), y, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["filter2d", "filter2d_real", "filter1d", "ssf", "lora", "vpt_deep"])
def test_exported(small, images, move, name):
    model = small(dtype=torch.float32, depth=1)
    handle = move(adapters.attach(model, name, **METHODS.get(name, {})))
    if handle.foldable:
        handle.fold()
    x = images(model)
    y = outputs(model, x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=False)
    assert torch.allclose(outputs(program.module(), x), y, atol=1e-5)
    assert torch.allclose(outputs(program.module(), torch.cat((x, x)))[2:], y, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["filter2d", "filter1d", "lora"])
def test_a_folded_model_runs_in_onnx_runtime(small, images, move, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small(dtype=torch.float32, depth=1)
    move(adapters.attach(model, name, **METHODS[name])).fold()
    x = images(model)
    y = outputs(model, x)
    torch.onnx.export(model, (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), y, atol=1e-4)
