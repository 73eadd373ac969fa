"""`freqformer bench` and ``freqformer.bench``: what is measured, kept and refused. No test asserts a timing."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from freqformer import FreqFormerError, ops
from freqformer.bench import (
    BENCHMARKS,
    Disagreement,
    ModelBenchmark,
    OpBenchmark,
    ScalingBenchmark,
    TrainBenchmark,
    append_rows,
    make_row,
    read_rows,
    record,
    run,
    timing,
)
from freqformer.bench.agreement import relative_error, require_agreement
from freqformer.bench.memory import cpu_peaks, is_measurable
from freqformer.bench.networks import Network, make_model, make_step, official
from freqformer.bench.operations import official_dynamic_filter, official_global_filter
from freqformer.cli import main

REPOSITORY = Path(__file__).parents[2]
KEYS = {"what", "setting", "result", "dtype", "torch", "device", "commit", "command", "date"}
CPU = torch.device("cpu")
TINY_OP = {"grids": ["3", "4x6"], "channels": [2], "batch_sizes": [1], "rounds": 2, "warmup": 2}
TINY_MODEL = {"input_size": 32, "batch_size": 2, "rounds": 2, "warmup": 2, "memory": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One call a sample, and a small copy."""
    monkeypatch.setattr(timing, "_SAMPLE_SECONDS", {"cpu": 1e-9})
    monkeypatch.setattr(timing, "_COPIED_BYTES", {"cpu": 1024})
    monkeypatch.setattr(sys, "argv", ["freqformer", "bench"])


# Timing


samples = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=20)


@given(samples)
def test_a_spread_lies_within_its_samples(values):
    found = timing.spread(values)
    assert min(values) <= found.p10 * (1 + 1e-9)
    assert found.p10 <= found.median <= found.p90
    assert found.p90 <= max(values) * (1 + 1e-9)


@given(samples, st.floats(0.1, 10))
def test_a_speedup_is_that_of_the_rounds(values, factor):
    found = timing.speedup(values, [factor * value for value in values])
    assert (found.p10, found.median, found.p90) == pytest.approx((factor, factor, factor))


def test_the_geometric_mean():
    assert timing.geometric_mean([2, 8]) == pytest.approx(4)


def test_candidates_take_turns_after_the_warm_up():
    calls = []
    steps = {name: (lambda name=name: calls.append(name)) for name in "ABC"}
    times = timing.paired(steps, CPU, rounds=4, warmup=3)
    assert "".join(calls) == "AAABBBCCC" + 4 * "ABC"
    assert {name: len(kept) for name, kept in times.items()} == {"A": 4, "B": 4, "C": 4}


def test_a_fast_step_is_repeated_within_a_sample(monkeypatch):
    monkeypatch.setattr(timing, "_SAMPLE_SECONDS", {"cpu": 0.01})
    calls = []
    timing.paired({"A": lambda: calls.append(1)}, CPU, rounds=1, warmup=2)
    assert len(calls) > 10


# Rows


def test_a_row_says_how_to_repeat_it():
    row = make_row("x", {"a": 1}, {"ms": 2.0}, dtype="float32", device="cpu")
    assert row.keys() == KEYS
    assert row["torch"] == torch.__version__
    assert row["device"].endswith(("core", "cores"))
    assert row["command"] == "freqformer bench"
    assert json.loads(json.dumps(row)) == row


@limits(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.dictionaries(st.text(), st.integers()), max_size=3), max_size=4))
def test_rows_are_added_and_never_lost(tmp_path_factory, batches):
    path = tmp_path_factory.mktemp("rows") / "new" / "x.json"
    rows = [[{"what": "x", "result": result} for result in batch] for batch in batches]
    for batch in rows:
        append_rows(path, batch)
    assert read_rows(path) == [row for batch in rows for row in batch]


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"a": 1}]', ""])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FreqFormerError, match=r"x\.json"):
        append_rows(path, [{"what": "x"}])
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["/opt/bin/freqformer", "bench", "op", "--grids", "7"], "freqformer bench op --grids 7"),
        (["/x/freqformer/__main__.py", "bench", "--output-dir", "/home/me/rows"], "freqformer bench --output-dir rows"),
        (["/x/benchmarks/gpu.py", "op", "--output-dir=/home/me/a b"], "python benchmarks/gpu.py op '--output-dir=a b'"),
    ],
)
def test_a_command_holds_no_place_of_this_machine(words, kept):
    assert record.command(words) == kept


@pytest.fixture
def fresh_commit():
    record.commit.cache_clear()
    yield
    record.commit.cache_clear()


def git(folder, *words):
    settings = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_package_alone(fresh_commit, monkeypatch, tmp_path):
    monkeypatch.delenv(record.COMMIT_VARIABLE, raising=False)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(record, "_PACKAGE", package)
    assert record.commit() == "unknown"
    git(tmp_path, "init")
    record.commit.cache_clear()
    assert record.commit() == "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    record.commit.cache_clear()
    clean = record.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (package / "__init__.py").write_text("1")
    record.commit.cache_clear()
    assert record.commit() == f"{clean}+changes"
    monkeypatch.setenv(record.COMMIT_VARIABLE, "abc")
    record.commit.cache_clear()
    assert record.commit() == "abc"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks/results").glob("*.json")), ids=lambda path: path.name)
def test_the_committed_rows_have_one_format(path):
    rows = read_rows(path)
    assert rows
    for row in rows:
        assert row.keys() - {"note"} == KEYS
        assert isinstance(row["setting"], dict)
        assert isinstance(row["result"], dict)
        assert row["dtype"] in ("float32", "bfloat16", "float16")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert not re.search(r"(^|[ =])/", row["command"])


# Agreement


@given(st.floats(1e-3, 1e3), st.floats(0, 1))
def test_agreement_does_not_depend_on_scale(scale, error):
    values = torch.linspace(1, 2, 10)
    assert relative_error(scale * (1 + error) * values, scale * values) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_what_is_wrong_or_not_finite_is_refused(wrong):
    right = torch.ones(3)
    require_agreement("x", [right, right], [right, right], 1e-6)
    with pytest.raises(Disagreement, match="x is wrong"):
        require_agreement("x", [right, wrong * right], [right, right], 0.01)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (3, 8)])
def test_the_plain_formulations_are_the_operations(grid):
    torch.manual_seed(0)
    x = torch.randn(2, *grid, 3)
    bank = torch.view_as_real(torch.fft.rfft2(torch.randn(*grid, 4), dim=(0, 1)))
    routing = torch.randn(2, 4, 3)
    weight = bank[:, :, :3].contiguous()
    assert relative_error(official_global_filter(x, weight), ops.global_filter(x, weight)) < 1e-6
    assert relative_error(official_dynamic_filter(x, bank, routing), ops.dynamic_filter(x, bank, routing)) < 1e-6
    assert official_global_filter(x.bfloat16(), weight).dtype == torch.bfloat16


# Runs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_operations(tmp_path, dtype):
    config = OpBenchmark(dtype=dtype, device="cpu", output_dir=str(tmp_path), **TINY_OP)
    rows = run(config)
    settings = [(row["setting"]["operation"], row["setting"]["pass"], *row["setting"]["x"]) for row in rows]
    assert len(set(settings)) == len(rows) == 2 * 2 * 2
    for row in rows:
        assert row.keys() == KEYS
        result = row["result"]
        assert result["ours"].keys() == result["against"].keys() == {"ms", "ms_p10", "ms_p90"}
        assert result["speedup_p10"] <= result["speedup"] <= result["speedup_p90"]
        assert ("copy_share" in result) == (row["setting"]["pass"] == "forward")
    assert read_rows(config.rows_path()) == rows
    assert config.rows_path().name == "op.json"
    assert config.picture_path().name == f"op-cpu-{dtype}.png"
    assert config.picture_path().read_bytes().startswith(b"\x89PNG")
    header, lines = config.table(rows)
    assert all(len(line) == len(header) for line in lines)
    assert len(lines) == len(rows)
    run(config, picture=False)
    assert len(read_rows(config.rows_path())) == 2 * len(rows)


def test_large_shapes_are_summarised(tmp_path, monkeypatch):
    monkeypatch.setattr("freqformer.bench.op.LARGE", 1e-9)
    config = OpBenchmark(device="cpu", output_dir=str(tmp_path), **TINY_OP)
    rows = run(config, picture=False)
    (mean,) = (
        row["result"]
        for row in rows
        if "speedup_geomean" in row["result"]
        and (row["setting"]["operation"], row["setting"]["pass"]) == ("global_filter", "forward")
    )
    values = [
        row["result"]["speedup"]
        for row in rows
        if "speedup" in row["result"]
        and (row["setting"]["operation"], row["setting"]["pass"]) == ("global_filter", "forward")
    ]
    assert mean["shapes"] == len(values) == 2
    assert mean["speedup_geomean"] == pytest.approx(timing.geometric_mean(values), rel=1e-2)
    assert len(config.table(rows)[1]) == len(rows)


def test_a_lowering_against_another(tmp_path):
    config = OpBenchmark(device="cpu", lowering="dft", against="fft", output_dir=str(tmp_path), **TINY_OP)
    assert all((row["setting"]["lowering"], row["setting"]["against"]) == ("dft", "fft") for row in run(config))


def test_an_absent_package_is_said_in_the_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "subquadratic_ops_torch", None)
    config = OpBenchmark(
        device="cpu", operations=["global_filter"], against="subquadratic", output_dir=str(tmp_path), **TINY_OP
    )
    rows = run(config)
    assert all("subquadratic_ops_torch" in row["result"]["skipped"] for row in rows)
    assert len(config.table(rows)[1]) == len(rows) == 4


def test_cases_may_be_cut_short(tmp_path):
    config = OpBenchmark(device="cpu", output_dir=str(tmp_path), **TINY_OP)
    rows = run(config, lambda cases: iter(cases[:1]), picture=False)
    assert {tuple(row["setting"]["x"]) for row in rows} == {(1, 3, 3, 2)}
    assert read_rows(config.rows_path()) == rows


@pytest.mark.parametrize(
    ("config_type", "settings"),
    [
        (ModelBenchmark, {"arch": ["test_gfnet", "test-dfformer"]}),
        (ModelBenchmark, {"arch": ["test_freqformer"], "dtype": "bfloat16", "against_dtype": "float32"}),
        (ModelBenchmark, {"arch": ["test_gfnet"], "dtype": "float16", "autocast": True}),
        (ModelBenchmark, {"arch": ["test_gfnet"], "against": "test_vit"}),
        (TrainBenchmark, {"arch": ["test_dfformer"], "against": "test_convnext"}),
        (TrainBenchmark, {"arch": ["test_gfnet"], "dtype": "bfloat16"}),
        (TrainBenchmark, {"arch": ["test_gfnet"], "dtype": "float16"}),
    ],
)
def test_networks(tmp_path, config_type, settings):
    config = config_type(device="cpu", output_dir=str(tmp_path), **settings, **TINY_MODEL)
    rows = run(config)
    assert [row["setting"]["arch"] for row in rows] == settings["arch"]
    for row in rows:
        assert row.keys() == KEYS
        ours, against = row["result"]["ours"], row["result"]["against"]
        assert ours.keys() == against.keys() == {"images_per_second", "ms", "ms_p10", "ms_p90"}
        assert row["result"]["speedup"] > 0
        assert row["setting"]["ours"]["dtype"] == row["dtype"] == config.dtype
        is_half = config.dtype != "float32"
        if config.against == "official":
            setting = row["setting"]["against_setting"]
            assert setting["lowering"] == "fft"
            assert setting["autocast"] == (is_half and config.against_dtype is None)
    assert config.picture_path().is_file()
    assert len(config.table(rows)[1]) == len(rows)


def test_sizes(tmp_path):
    config = ScalingBenchmark(
        device="cpu",
        arch=["test_gfnet"],
        against=["test_vit"],
        input_sizes=[64, 32],
        equal_pixels=True,
        rounds=2,
        memory=False,
        output_dir=str(tmp_path),
    )
    rows = run(config)
    measured = [row for row in rows if row["what"] == "scaling"]
    assert [
        (row["setting"]["arch"], row["setting"]["input_size"], row["setting"]["batch_size"]) for row in measured
    ] == [
        ("test_gfnet", 32, 4),
        ("test_vit", 32, 4),
        ("test_gfnet", 64, 1),
        ("test_vit", 64, 1),
    ]
    summary = [row for row in rows if row not in measured]
    assert [row["setting"]["arch"] for row in summary] == ["test_gfnet", "test_vit"]
    times = [row["result"]["ns_per_pixel"] for row in measured if row["setting"]["arch"] == "test_vit"]
    assert summary[1]["result"]["time_per_pixel_ratio"] == pytest.approx(times[1] / times[0], rel=1e-2)
    assert config.picture_path().is_file()
    assert len(config.table(rows)[1]) == len(rows)


def test_equal_architectures_have_equal_weights_and_telling_filters():
    one, other = (make_model(Network("test_gfnet", 32, 1, "float32", "cpu")) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    filters = [p for name, p in one.named_parameters() if name.endswith("complex_weight")]
    assert filters
    assert all(p.std() > 0.5 for p in filters)


def test_a_training_step_trains():
    step = make_step(Network("test_gfnet", 32, 4, "float32", "cpu", train=True))
    losses = [step().item() for _ in range(20)]
    assert losses[-1] < losses[0]


def test_the_official_formulation_is_float32_transforms_under_autocast():
    ours = Network("test_gfnet", 32, 4, "bfloat16", "cpu", compiled=True, train=True)
    theirs = official("test_gfnet", ours, dtype="bfloat16", compiled=False)
    assert theirs == Network("test_gfnet", 32, 4, "bfloat16", "cpu", autocast=True, lowering="fft", train=True)


@pytest.mark.skipif(not is_measurable(), reason="this system does not tell the peak of resident memory")
@pytest.mark.slow
def test_peak_memory_counts_what_a_step_holds():
    def networks(**changes):
        return Network("gfnet_ti", 224, 8, "float32", "cpu", **changes)

    inference, training = cpu_peaks([networks(), networks(train=True)])
    weights = 4 * sum(p.numel() for p in make_model(networks()).parameters())
    assert weights < inference < 2 * weights + 8 * 196 * 256 * 4 * 4 * 8
    # Weights, two moments and, at the end of the backward pass, gradients; and the activations of 12 blocks before it.
    assert training > 4 * weights
    assert training > inference + 12 * 8 * 196 * 256 * 4 * 4


@pytest.mark.slow
def test_compiled_candidates_are_checked_and_timed(tmp_path):
    for config_type, settings in ((ModelBenchmark, TINY_MODEL), (TrainBenchmark, TINY_MODEL)):
        config = config_type(device="cpu", arch=["test_gfnet"], compile=True, output_dir=str(tmp_path), **settings)
        (row,) = run(config, picture=False)
        assert row["setting"]["ours"]["compiled"]
        assert not row["setting"]["against_setting"]["compiled"]
    rows = run(OpBenchmark(device="cpu", compile=True, output_dir=str(tmp_path), **TINY_OP), picture=False)
    assert all(row["setting"]["compiled"] for row in rows)


# The command line


def words(config, tmp_path, **settings):
    given = {"device": "cpu", "output_dir": str(tmp_path), **settings}
    result = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        flag = name.replace("_", "-")
        result += [f"--no-{flag}"] if value is False else [f"--{flag}", *map(str, values)]
    return ["bench", config.kind, *result]


def test_the_command_prints_a_table_and_where_the_rows_are(command, tmp_path):
    answer = command(*words(OpBenchmark, tmp_path, **TINY_OP))
    assert answer.code == 0, answer.err
    assert answer.err == ""
    lines = answer.out.splitlines()
    assert lines[0].split()[:3] == ["operation", "pass", "x"]
    assert len(lines) == 1 + 8 + 1
    assert f"{tmp_path / 'op.json'}: 8 rows added" in lines[-1]
    assert len(read_rows(tmp_path / "op.json")) == 8


@pytest.mark.parametrize("config", [ModelBenchmark, TrainBenchmark])
def test_the_command_times_networks(command, tmp_path, config):
    answer = command(*words(config, tmp_path, arch=["test_gfnet", "test_afno"], **TINY_MODEL))
    assert answer.code == 0, answer.err
    assert [line.split()[0] for line in answer.out.splitlines()[1:3]] == ["test_gfnet", "test_afno"]


def test_rows_go_to_benchmarks_results_where_it_exists(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--device", "cpu", "--grids", "3", "--channels", "1", "--batch-sizes", "1", "--rounds", "1"]
    assert command("bench", "op", *flags).code == 0
    assert Path("bench-results/op.json").is_file()
    Path("benchmarks/results").mkdir(parents=True)
    assert command("bench", "op", *flags).code == 0
    assert {path.name for path in Path("benchmarks/results").iterdir()} == {"op.json", "op-cpu-float32.png"}


def test_a_wrong_operation_is_not_timed(command, tmp_path, monkeypatch):
    right = ops.dft.global_filter
    monkeypatch.setattr("freqformer.ops.dft.global_filter", lambda x, weight: 1.05 * right(x, weight))
    answer = command(*words(OpBenchmark, tmp_path, lowering="dft", **TINY_OP))
    assert answer.code == 1
    assert re.fullmatch(r"freqformer: global_filter forward on .* is wrong by 0.05.*\n", answer.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [ModelBenchmark, TrainBenchmark])
def test_a_wrong_network_is_not_timed(command, tmp_path, monkeypatch, config):
    right = ops.dft.global_filter
    monkeypatch.setattr("freqformer.ops.dft.global_filter", lambda x, weight: right(x, weight).flip(1))
    answer = command(*words(config, tmp_path, arch="test_gfnet", lowering="dft", **TINY_MODEL))
    assert answer.code == 1
    assert re.fullmatch(r"freqformer: test_gfnet \(features\) in float32 is wrong by .*\n", answer.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["op", "--grids", "7x"], "--grids does not take '7x'"),
        (["op", "--grids", "0"], "--grids does not take '0'"),
        (["op", "--channels", "many"], "--channels does not take 'many': it needs whole numbers"),
        (["op", "--channels", "0"], "--channels must be at least 1"),
        (["op", "--operations", "afno"], "--operations afno: choose one of"),
        (["op", "--passes", "backward"], "--passes backward: choose one of"),
        (["op", "--lowering", "dtf"], "--lowering dtf: choose one of"),
        (["op", "--against", "deit_small"], "--against deit_small: choose one of"),
        (["op", "--against", "subquadratic"], "--operations global_filter"),
        (["op", "--device", "cpu", "--cuda-graphs"], "--cuda-graphs needs a GPU"),
        (["op", "--device", "tpu"], "--device tpu: choose one of"),
        (["op", "--dtype", "bf16"], "--dtype bf16: choose one of"),
        (["model", "--rounds", "0"], "--rounds must be at least 1"),
        (["model", "--warmup", "1"], "--warmup must be at least 2"),
        (["model", "--arch", "gfnet_sx"], "--arch: there is no model 'gfnet_sx': did you mean"),
        (["model", "--arch", "resnet18"], "--against"),
        (["train", "--against", "deit"], "--against: there is no model 'deit'"),
        (["train", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["train", "--against-dtype", "half"], "--against-dtype half: choose one of"),
        (["scaling", "--input-sizes", "0"], "--input-sizes must be at least 1"),
        (["scaling", "--arch", "no-such-model"], "--arch: there is no model"),
        (["scaling", "--lowering", "x"], "--lowering x: choose one of"),
        (["speed"], "there is no benchmark 'speed': choose one of op, model, scaling, train"),
        (["op", "--gridz", "7"], "did you mean --grids?"),
    ],
)
def test_wrong_use_is_one_line(refused, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("bench", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_said(refused):
    assert "finds no GPU" in refused("bench", "op", "--device", "cuda")


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_help_explains_every_flag(command, kind):
    answer = command("bench", kind, "--help")
    assert answer.code == 0
    assert f"usage: freqformer bench {kind}" in answer.out
    for field in fields(BENCHMARKS[kind]):
        assert "--" + field.name.replace("_", "-") in answer.out


def test_help_names_the_benchmarks(command):
    shown, missing = command("bench", "--help"), command("bench")
    assert (shown.code, missing.code) == (0, 2)
    assert all(f"  {kind} " in shown.out for kind in BENCHMARKS)


def test_the_command_is_what_the_row_says(monkeypatch, tmp_path, capsys):
    given = words(OpBenchmark, tmp_path, **TINY_OP)
    monkeypatch.setattr(sys, "argv", ["freqformer", *given])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    (row, *_) = read_rows(tmp_path / "op.json")
    assert row["command"] == f"freqformer bench op --device cpu --output-dir {tmp_path.name} " + (
        "--grids 3 4x6 --channels 2 --batch-sizes 1 --rounds 2 --warmup 2"
    )


@pytest.mark.slow
def test_it_runs_where_the_extras_are_absent(tmp_path):
    code = (
        "import sys\n"
        "for name in ('rich', 'jsonargparse', 'matplotlib', 'lightning', 'torchmetrics', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from freqformer.bench import OpBenchmark, run\n"
        "shape = {'grids': ['3'], 'channels': [1], 'batch_sizes': [1]}\n"
        f"config = OpBenchmark(device='cpu', output_dir={str(tmp_path)!r}, **shape)\n"
        "print(len(run(config, picture=False)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
