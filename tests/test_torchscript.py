"""TorchScript archives are read as data: every tensor by its name, and nothing of theirs is run."""

import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import freqformer
from freqformer import FreqFormerError
from freqformer.checkpoints import average_weights, read_description, read_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Leaf(nn.Module):
    """Tensors beside what else a module has."""

    numbers: list[int]
    label: str
    table: dict[str, int]

    def __init__(self, tensors=()):
        super().__init__()
        self.numbers = [1, 2]
        self.label = "a leaf"
        self.table = {"a": 1}
        self.nothing = None
        for i, value in enumerate(tensors):
            if value.is_floating_point():
                self.register_parameter(f"value{i}", nn.Parameter(value))
            else:
                self.register_buffer(f"value{i}", value)

    def forward(self, x):
        return x


class Tree(nn.Module):
    def __init__(self, leaves):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.inside = nn.ModuleDict({"leaves": nn.Sequential(*leaves), "map": nn.Linear(2, 3)})

    def forward(self, x):
        return self.norm(self.inside["map"](self.inside["leaves"](x)))


def script(module, path, trace=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in the world
        archive = torch.jit.trace(module, torch.ones(2, 2)) if trace else torch.jit.script(module)
        torch.jit.save(archive, path)


def refuse(call, *words):
    with pytest.raises(FreqFormerError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message


def records(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.fixture
def archive(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    script(Tree([Leaf([torch.randn(2, 3), torch.arange(4)])]), path)
    return path


tensors = st.builds(
    lambda shape, dtype, turned: (torch.randn(shape) * 3).to(dtype).permute(sorted(range(len(shape)), reverse=turned)),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(DTYPES),
    st.booleans(),
)


@FEW
@given(st.lists(st.lists(tensors, max_size=3), max_size=3), st.booleans())
def test_every_tensor_is_found_by_its_name(tmp_path, leaves, trace):
    tree = Tree([Leaf(values) for values in leaves]).eval()
    script(tree, tmp_path / "model.pt", trace)
    weights = read_weights(tmp_path / "model.pt")
    expected = tree.state_dict()
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value)


def test_views_of_one_storage(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    module = Leaf()
    module.register_buffer("all", whole)
    module.register_buffer("part", whole[1:, ::2])
    script(module, tmp_path / "model.pt")
    weights = read_weights(tmp_path / "model.pt")
    assert torch.equal(weights["all"], whole)
    assert torch.equal(weights["part"], whole[1:, ::2])


def test_it_is_a_weight_file_like_others(archive):
    assert read_description(archive) is None
    key = "inside.map.weight"
    assert torch.equal(average_weights([archive, archive])[key], read_weights(archive)[key])
    refuse(lambda: freqformer.load_checkpoint(freqformer.create_model("test_gfnet"), archive), "model.pt")
    # A model of this package in one is that model.
    network = torch.nn.Module()
    source = freqformer.create_model("test_gfnet")
    for name, value in source.state_dict().items():
        *modules, last = name.split(".")
        here = network
        for part in modules:
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        here.register_buffer(last, value)
    script(network, archive)
    assert freqformer.load_model(archive, arch="test_gfnet").num_classes == source.num_classes


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["whole", "inside", "hidden"])
def test_code_is_not_run(archive, tmp_path, place):
    marker = tmp_path / "marker"
    attack = pickle.dumps(Attack(Path.touch, marker), 2)
    content = records(archive)
    name = next(name for name in content if name.endswith("/data.pkl"))
    if place == "whole":
        content[name] = attack
    elif place == "inside":
        # Before the object itself: made, and thrown away.
        content[name] = content[name][:2] + attack[2:-1] + b"0" + content[name][2:]
    else:
        # By its path through a name that would be let through.
        attack = b"\x80\x02c__torch__.os\nsystem\n(X" + len(f"touch {marker}").to_bytes(4, "little")
        content[name] = attack + f"touch {marker}".encode() + b"tR0" + content[name][2:]
    rewrite(archive, content)
    if place == "hidden":
        assert read_weights(archive)
    else:
        refuse(lambda: read_weights(archive), archive, "code")
    assert not marker.exists()
    if place == "whole":
        pickle.loads(attack)
        assert marker.exists()


@pytest.mark.parametrize(
    "path", ["builtins.eval", "builtins.getattr", "torch.load", "torch._utils._rebuild_tensor_v3", "os.system"]
)
def test_functions_of_other_names_are_refused(archive, path):
    content = records(archive)
    name = next(name for name in content if name.endswith("/data.pkl"))
    module, function = path.rsplit(".", 1)
    content[name] = content[name][:2] + f"c{module}\n{function}\n0".encode() + content[name][2:]
    rewrite(archive, content)
    refuse(lambda: read_weights(archive), archive, path)


def test_a_view_outside_of_its_storage_is_refused(archive):
    content = records(archive)
    name = next(name for name in content if name.endswith("/data/0"))
    content[name] = content[name][:-4]
    rewrite(archive, content)
    refuse(lambda: read_weights(archive), archive)


def test_a_big_endian_archive_is_refused(archive):
    content = records(archive)
    content[next(name for name in content if name.endswith("/byteorder"))] = b"big"
    rewrite(archive, content)
    refuse(lambda: read_weights(archive), archive, "big-endian")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_noticed(archive, data):
    whole = archive.read_bytes()
    expected = read_weights(archive)
    broken = bytearray(whole)
    if data.draw(st.booleans()):
        broken = broken[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3, unique=True)):
            broken[place] ^= data.draw(st.integers(1, 255))
    other = archive.with_name("broken.pt")
    other.write_bytes(broken)
    try:
        weights = read_weights(other)
    except FreqFormerError:
        refuse(lambda: read_weights(other), other)
        return
    # Bytes that no tensor depends on.
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_torch_files_are_read_as_before(tmp_path):
    state = OrderedDict(weight=torch.ones(2))
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pt", "old.pt"):
        assert torch.equal(read_weights(tmp_path / name)["weight"], state["weight"])
