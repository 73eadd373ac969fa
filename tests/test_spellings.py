"""The papers' own command lines mean here what they mean in the papers' scripts."""

from dataclasses import asdict, dataclass, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import freqformer.engine
from freqformer import FreqFormerError, spellings
from freqformer.cli import main
from freqformer.engine import EvaluationConfig
from freqformer.spellings import translate
from freqformer.tasks import ClassificationConfig

# What main_gfnet.py's parser says where a line is silent; main_gfnet_transfer.py, main_spectformer*.py and
# main_freqformer*.py say the same. Its --drop-path is read by none of its models, and its --cooldown-epochs by none of
# its loops.
SCRIPT = {
    "epochs": 300,
    "opt": "adamw",
    "opt_eps": None,  # 1e-8, which is AdamW's
    "opt_betas": None,
    "momentum": 0.9,
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "sched": "cosine",
    "lr": 5e-4,
    "lr_base_batch": 512,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "decay_epochs": 30,
    "decay_rate": 0.1,
    "cooldown_epochs": 0,
    "drop": 0.0,
    "drop_path": None,
    "model_ema": False,
    "model_ema_decay": 0.99996,
    "smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "aa": "rand-m9-mstd0.5-inc1",  # so that --color-jitter, 0.4, is not reached
    "reprob": 0.0,
    "remode": "pixel",
    "recount": 1,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "aug_repeats": 1,
    "distillation_type": "none",
    "distillation_alpha": 0.5,
    "distillation_tau": 1.0,
    "hflip": 0.5,
    "interpolation": "bicubic",
    "crop_pct": None,  # 224/256, the models' own
    "data_set": "IMNET",
    "input_size": None,  # 224, the models' own
    "finetune": None,
    "seed": 0,
}
# DFFormer's train.py, which is timm 0.5.4's, where the README's line is silent.
TIMM = {
    **SCRIPT,
    "lr_base_batch": None,
    "min_lr": 1e-5,
    "decay_epochs": 100,
    "cooldown_epochs": 10,
    "clip_grad": None,
    "model_ema_decay": 0.9998,
    "train_interpolation": "random",
    "color_jitter": 0.4,
    "seed": 42,
}


def papers(family):
    """The README's three training lines of a family whose scripts are GFNet's, and what they set."""
    arch = f"{family}-xs"
    return [
        (
            f"--output_dir logs/{arch} --arch {arch} --batch-size 128 --data-path /path/to/ILSVRC2012/",
            {
                **SCRIPT,
                "arch": arch,
                "batch_size": 128,
                "data_path": "/path/to/ILSVRC2012/",
                "output_dir": f"logs/{arch}",
            },
            1e-3,
        ),
        (
            f"--output_dir logs/{arch}-img384 --arch {arch} --input-size 384 --batch-size 64 "
            "--data-path /path/to/ILSVRC2012/ --lr 5e-6 --weight-decay 1e-8 --min-lr 5e-6 --epochs 30 "
            "--finetune /path/to/model",
            {
                **SCRIPT,
                "arch": arch,
                "input_size": 384,
                "batch_size": 64,
                "data_path": "/path/to/ILSVRC2012/",
                "output_dir": f"logs/{arch}-img384",
                "lr": 5e-6,
                "min_lr": 5e-6,
                "weight_decay": 1e-8,
                "epochs": 30,
                "finetune": "/path/to/model",
                "drop_path": 0.0,  # the network is in evaluation mode
            },
            5e-6,
        ),
        (
            f"--output_dir logs/{arch}-cars --arch {arch} --batch-size 64 --data-set CARS "
            "--data-path /path/to/stanford_cars --epochs 1000 --lr 0.0001 --weight-decay 1e-4 --clip-grad 1 "
            "--warmup-epochs 5 --finetune /path/to/model",
            {
                **SCRIPT,
                "arch": arch,
                "batch_size": 64,
                "data_set": "CARS",
                "data_path": "/path/to/stanford_cars",
                "output_dir": f"logs/{arch}-cars",
                "epochs": 1000,
                "lr": 1e-4,
                "weight_decay": 1e-4,
                "warmup_epochs": 5,
                "finetune": "/path/to/model",
                "drop_path": 0.0,
            },
            1e-4,
        ),
    ]


DFFORMER = (
    "/path/to/imagenet --model dfformer_s18 -b 128 -j 8 --opt adamw --epochs 300 --sched cosine --native-amp "
    "--img-size 224 --drop-path 0.2 --lr 1e-3 --weight-decay 0.05 --aa rand-m9-mstd0.5-inc1 --smoothing 0.1 "
    "--mixup 0.8 --cutmix 1.0 --reprob 0.25 --warmup-lr 1e-6 --warmup-epochs 20 --experiment DFFormer "
    "--task-name dfformer_s18",
    {
        **TIMM,
        "arch": "dfformer_s18",
        "data_path": "/path/to/imagenet",
        "batch_size": 128,
        "num_workers": 8,
        "precision": "auto",
        "input_size": 224,
        "drop_path": 0.2,
        "lr": 1e-3,
        "reprob": 0.25,
        "warmup_epochs": 20,
        "output_dir": "output/train/DFFormer/dfformer_s18",
    },
    1e-3,
)
LINES = [*papers("gfnet"), *papers("spectformer"), *papers("freqformer"), DFFORMER]


@dataclass
class Answer:
    code: int
    config: object
    out: str
    err: str


@pytest.fixture
def resolved(monkeypatch, capfd):
    """The config that a command line would run, without running it."""
    configs = []

    def record(config):
        configs.append(config)
        figures = {"top1": 0.0, "top5": 0.0, "loss": 0.0}
        return {"best": figures, **figures, "images": 1, "images_per_second": 1.0, "bad_images": 0}

    monkeypatch.setattr(freqformer.engine, "run", record)
    monkeypatch.setattr(freqformer.engine, "evaluate", record)

    def call(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        return Answer(stop.value.code, configs.pop() if configs else None, *capfd.readouterr())

    return call


@pytest.mark.parametrize(("line", "said", "lr"), LINES, ids=[line[:40] for line, _, _ in LINES])
def test_a_papers_training_line_means_the_same(resolved, line, said, lr):
    answer = resolved("train", *line.split())
    assert answer.code == 0, answer.err
    assert asdict(answer.config) == asdict(replace(ClassificationConfig(), **said))
    answer.config.check()
    assert answer.config.scaled_lr(8) == pytest.approx(lr)
    assert answer.config.warmup() == said.get("warmup_epochs", 5)
    assert answer.config.all_epochs() == said["epochs"] + said["cooldown_epochs"]


@pytest.mark.parametrize("arch", ["gfnet-xs", "spectformer-xs", "freqformer-xs"])
def test_a_papers_evaluation_line_means_the_same(resolved, arch):
    line = f"--data-path /path/to/ILSVRC2012/ --arch {arch} --model-path /path/to/model"
    answer = resolved("eval", *line.split())
    assert answer.code == 0, answer.err
    assert answer.config == EvaluationConfig(
        model_path="/path/to/model",
        arch=arch,
        data_path="/path/to/ILSVRC2012/",
        data_set="IMNET",
        batch_size=128,
        input_size=None,
        output_dir="auto",
    )
    more = "--seed 3 --num_workers 10 --pin-mem --inat-category name -b 7"
    more = resolved("eval", *line.split(), *more.split())
    assert more.config == replace(answer.config, num_workers=10, batch_size=7)
    assert more.err.splitlines() == [
        "freqformer: --seed changes nothing: evaluation draws nothing",
        "freqformer: --pin-mem changes nothing: it moves no figure",
    ]


# Every flag of main_gfnet.py (whose descendants have no other) and of DFFormer's train.py, with a value where it has
# one.
GFNET_FLAGS = """
--batch-size 2; --epochs 9; --arch gfnet-xs; --input-size 64; --drop 0.1; --drop-path 0.1; --model-ema;
--model-ema-decay 0.9; --model-ema-force-cpu; --opt lamb; --opt-eps 1e-8; --opt-betas 0.9 0.99; --clip-grad 2;
--momentum 0.8; --weight-decay 0.1; --sched tanh; --lr 1e-3; --lr-noise 0.1 0.9; --lr-noise-pct 0.6; --lr-noise-std 1;
--warmup-lr 1e-5; --min-lr 1e-4; --decay-epochs 20; --warmup-epochs 1; --cooldown-epochs 2; --patience-epochs 3;
--decay-rate 0.2; --dr 0.2; --aa v0; --smoothing 0.2; --train-interpolation random; --reprob 0.1; --resplit;
--mixup 0.1;
--cutmix 0.1; --cutmix-minmax 0.1 0.2; --mixup-mode batch; --finetune x; --data-path x; --data-set CIFAR10;
--inat-category name; --color-jitter 0.3; --repeated-aug; --remode rand; --recount 2; --mixup-prob 0.5;
--mixup-switch-prob 0.1; --teacher-model x; --teacher-path x; --distillation-type hard; --distillation-alpha 0.1;
--distillation-tau 2; --output_dir x; --device cpu; --seed 1; --resume x; --start_epoch 3; --eval; --dist-eval;
--num_workers 3; --pin-mem; --no-pin-mem; --world_size 8; --dist_url env://
"""
TIMM_FLAGS = """
-c x; --dataset x; -d x; --train-split train80; --val-split validation; --dataset-download; --class-map x; --mpi;
--model gfnet_xs; --pretrained; --initial-checkpoint x; --no-resume-opt; --num-classes 3; --gp avg; --img-size 64;
--input-size 3 64 64; --crop-pct 0.9; --mean 0 0 0; --std 1 1 1; --interpolation bilinear; -b 2; -vb 2;
--validation-batch-size 2; --clip-mode norm; --lr-cycle-mul 1; --lr-cycle-decay 0.5; --lr-cycle-limit 1; --lr-k-decay 1;
--epoch-repeats 0; --no-aug; --hflip 0.1; --vflip 0.1; --scale 0.1 1;
--ratio 0.5 2; --aug-repeats 3; --aug-splits 0; --jsd-loss; --bce-loss; --bce-target-thresh 0.1;
--mixup-off-epoch 0; --drop-connect 0.1; --drop-block 0.1; --head-dropout 0.1; --bn-momentum 0.1; --bn-eps 0.1;
--dist-bn reduce; --split-bn; --worker-seeding all; --log-interval 3; --recovery-interval 3; --checkpoint-hist 3; -j 3;
--workers 3; --save-images; --amp; --apex-amp; --native-amp; --no-ddp-bb; --channels-last; --no-prefetcher; --output x;
--experiment x; --eval-metric top1; --tta 0; --local_rank 0; --use-multi-epochs-loader; --torchscript; --fuser te;
--log-wandb; --log-clearml; --task-name x; --output-uri x; --log-s3
"""
OFFICIAL = [flag.split() for flag in (GFNET_FLAGS + ";" + TIMM_FLAGS).split(";")]


@pytest.mark.parametrize("words", OFFICIAL, ids=" ".join)
def test_every_flag_of_the_official_scripts_means_something_or_says_why_not(resolved, words):
    answer = resolved("train", *words)
    if answer.code == 0:
        same = answer.config == ClassificationConfig()
        assert not same or "changes nothing" in answer.err or words[0] in {*spellings.ONLY, *spellings.MEANS}, words
    else:
        assert answer.code == 2
        assert answer.err.count("\n") == 1, answer.err
        assert any(word in answer.err for word in ("can only be", *spellings.REFUSED.values())), answer.err


def test_no_spelling_hides_a_field():
    theirs = [*spellings.SAME, *spellings.MEANS, *spellings.ONLY, *spellings.IDLE, *spellings.REFUSED]
    assert len(theirs) == len(set(theirs))
    ours = {"--" + field.name.replace("_", "-") for field in fields(ClassificationConfig)}
    assert not ours & set(theirs)


WORD = st.text("abcxyz019./_", min_size=1).filter(lambda word: not word.startswith("-"))


@given(st.lists(st.tuples(st.sampled_from([field.name for field in fields(ClassificationConfig)]), WORD)))
def test_our_own_lines_are_left_alone(pairs):
    words = [word for name, value in pairs for word in ("--" + name.replace("_", "-"), value)]
    line = translate(words)
    assert line.words == words
    assert not line.timm
    joined = [f"--{name.replace('_', '-')}={value}" for name, value in pairs]
    assert translate(joined).words == joined


@given(st.integers(0, 10**6), st.sampled_from(["-b {}", "-b{}", "--batch-size {}", "--batch_size={}"]))
def test_every_spelling_of_a_batch_is_one(batch, spelling):
    words = translate(spelling.format(batch).split()).words
    assert "=".join(words).replace("_", "-") == f"--batch-size={batch}"


def test_model_implies_timm_and_its_absolute_learning_rate(resolved):
    ours, theirs = resolved("train", "--arch", "gfnet_xs"), resolved("train", "--model=gfnet_xs")
    assert ours.config == ClassificationConfig(arch="gfnet_xs")
    assert ours.out.startswith("best")
    assert (theirs.config.opt, theirs.config.lr, theirs.config.precision) == ("sgd", 0.05, "32-true")
    assert theirs.config.scaled_lr(8) == theirs.config.scaled_lr(1) == 0.05
    assert theirs.out.startswith("defaults of the recipe timm: opt: sgd, lr: 0.05,")
    assert resolved("train", "--model", "gfnet_xs", "--lr-base-batch", 256, "-b", 512).config.scaled_lr() == 0.1


def test_a_named_recipe_replaces_the_implied_one(resolved):
    answer = resolved("train", "--model", "gfnet_s", "--recipe", "imagenet_gfnet_xs", "--finetune", "x")
    assert answer.config == ClassificationConfig(arch="gfnet_s", finetune="x")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("--experiment A --task-name b", "output/train/A/b"),
        ("--output o --experiment A", "o/A"),
        ("--output=o --model gfnet_xs", "o/gfnet_xs"),
        ("--task-name=b --model=gfnet_xs", "output/train/gfnet_xs/b"),
        ("--experiment A --output-dir mine", "mine"),
        ("--output_dir=mine --experiment A", "mine"),
    ],
)
def test_timms_folder(resolved, words, folder):
    assert resolved("train", *words.split()).config.output_dir == folder


@pytest.mark.parametrize(
    ("words", "size"),
    [("3 224 192", (224, 192)), ("224 192", (224, 192)), ("224", 224), ("[224,192]", (224, 192)), ("none", None)],
)
def test_a_size_of_one_two_or_three_numbers(resolved, words, size):
    answer = resolved("train", "data", "--input-size", *words.split(), "--epochs", "3")
    assert answer.code == 0, answer.err
    assert answer.config.input_size == size
    assert answer.config.epochs == 3
    assert answer.config.data_path == "data"


def test_a_data_path_after_a_flag_is_no_value_of_it(resolved):
    assert resolved("train", "--native-amp", "data").config.data_path == "data"
    assert resolved("train", "--pin-mem", "data").config.data_path == "data"
    assert resolved("train", "--amp", "data", "--epochs", 3).config == ClassificationConfig(data_path="data", epochs=3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--eval"], "freqformer eval"),
        (["--start_epoch", "3"], "--resume"),
        (["--mixup-mode", "elem"], "--mixup-mode can only be batch, not elem"),
        (["--mixup-mode"], "--mixup-mode can only be batch, not nothing"),
        (["--lr-noise=0.4"], "--lr-noise can only be none, not 0.4"),
        (["--dataset", "torch/cifar10"], "--data-set"),
        (["--amp=true"], "--amp"),
        (["one", "two"], "two"),
    ],
)
def test_what_is_not_there_says_what_to_use(resolved, words, says):
    answer = resolved("train", *words)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert says in answer.err


def test_refusals_are_errors_of_ours():
    with pytest.raises(FreqFormerError, match="bench model"):
        translate(["--throughput"])
