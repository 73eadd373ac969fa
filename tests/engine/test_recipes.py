"""Every recipe: complete, different from the defaults only where it says so, and able to train."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from freqformer import FreqFormerError, create_model
from freqformer.checkpoints import save_weights
from freqformer.data.label_maps import Description, write_map
from freqformer.engine import recipe_config, run
from freqformer.engine.recipes import RECIPES, get_recipe
from freqformer.models import canonical_name, model_names
from freqformer.tasks import AdaptationConfig, ClassificationConfig
from freqformer.tasks.detection import DetectionConfig
from freqformer.tasks.segmentation import SegmentationConfig

CONFIGS = {
    "train": ClassificationConfig,
    "adapt": AdaptationConfig,
    "detect train": DetectionConfig,
    "segment train": SegmentationConfig,
}
DENSE = [name for name, recipe in RECIPES.items() if recipe.command in ("detect train", "segment train")]
TINY = {
    "gfnet": "test_gfnet",
    "gfnet_h": "test_gfnet_h",
    "spectformer": "test_spectformer",
    "freqformer": "test_freqformer",
    "spectformer_h": "test_spectformer_h",
    "freqformer_h": "test_freqformer_h",
    "dfformer": "test_dfformer",
    "cdfformer": "test_cdfformer",
}
DOCS = Path(__file__).parents[2] / "docs/recipes.md"


def family(arch):
    return arch.rpartition("_")[0]


def given(name):
    """What a user must add to a recipe."""
    return {field: "x" for field in RECIPES[name].needs}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_says_where_it_comes_from(name):
    recipe = RECIPES[name]
    assert len(recipe.what) > 20
    assert len(recipe.source) > 20
    config = recipe_config(name, **given(name))
    config.check()
    assert type(config) is CONFIGS[recipe.command]
    if recipe.command != "adapt":
        assert canonical_name(config.arch) == config.arch
    defaults = asdict(CONFIGS[recipe.command]())
    assert {**asdict(config), **given(name)} == {**defaults, **recipe.settings, **given(name)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_nothing_that_is_the_default(name):
    defaults = CONFIGS[RECIPES[name].command]()
    for field, value in RECIPES[name].settings.items():
        assert value != getattr(defaults, field), field


def test_every_size_of_every_family_has_a_recipe():
    nano = {"freqformer_n", "gfnet_h_n", "freqformer_h_n"}
    ablations = {"gfformer_s18", *model_names("dfformer_s18_*")}
    archs = {name for name in model_names() if not name.startswith("test_")} - nano - ablations
    assert {f"imagenet_{arch}" for arch in archs} == {name for name in RECIPES if name.startswith("imagenet_")}


def test_recipes_of_the_same_protocol_differ_in_model_and_data_alone():
    groups = {}
    for recipe in RECIPES.values():
        if recipe.name in DENSE:
            continue
        arch = recipe.settings.get("arch", "")
        kept = {k: v for k, v in recipe.settings.items() if k not in ("arch", "data_set", "drop_path", "clip_grad")}
        groups.setdefault((recipe.name.partition("_")[0], family(arch)), []).append(kept)
    for group, settings in groups.items():
        assert group[0] in ("finetune", "freqfit") or all(one == settings[0] for one in settings), group


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(FreqFormerError, match="there is no recipe 'transfer_car': did you mean transfer_cars"):
        get_recipe("transfer_car")
    with pytest.raises(FreqFormerError, match="`freqformer recipes` lists them"):
        get_recipe("xyzzy")
    assert get_recipe("Transfer-Cars") is RECIPES["transfer_cars"]


def test_what_only_the_user_has_is_asked_for():
    with pytest.raises(FreqFormerError, match="the recipe transfer_cars needs --finetune"):
        recipe_config("transfer_cars")


def test_a_short_runs_warm_up_is_a_part_of_it():
    assert recipe_config("imagenet_dfformer_s18").warmup() == 20
    assert recipe_config("imagenet_dfformer_s18", epochs=10).warmup() == 2
    assert recipe_config("imagenet_dfformer_s18", epochs=10, warmup_epochs=7).warmup() == 7


def test_freqfits_line_is_its_recipe():
    """bash run.sh cifar100 sup_vitb16_imagenet21k 64 0.1 0.01 0 0 freqfit"""
    vtab, fgvc = (recipe_config(f"freqfit_{name}") for name in ("vtab", "fgvc"))
    for config in (vtab, fgvc):
        assert (config.batch_size, config.scaled_lr(), config.weight_decay) == (64, 0.1, 0.01)
        assert (config.opt, config.momentum, config.epochs, config.warmup()) == ("sgd", 0.9, 100, 5)
        assert (config.sched, config.sched_by_epoch, config.all_epochs()) == ("cosine", True, 100)
    differ = {key for key, value in asdict(vtab).items() if value != getattr(fgvc, key)}
    assert differ == {"data_set", "resize", "crop_pct", "hflip"}
    assert recipe_config("freqfit_vtab", epochs=5).warmup() == 1


def test_the_papers_retinanet():
    """dfformer, detection/configs/retinanet/dfformer_s18_retinanet.py and its _base_"""
    config = recipe_config("retinanet_1x")
    assert (config.arch, config.detector) == ("dfformer_s18", "retinanet")
    assert (config.opt, config.scaled_lr(8), config.weight_decay, config.decay_all) == ("adamw", 1e-4, 0.05, True)
    check_1x(config)


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn"])
def test_the_papers_detectors_of_two_stages(detector):
    """poolformer, detection/configs/mask_rcnn_poolformer_s12_fpn_1x_coco.py and its _base_, and the same in PVT"""
    config = recipe_config(f"{detector}_1x")
    assert (config.arch, config.detector) == ("spectformer_h_s", detector)
    assert (config.opt, config.scaled_lr(8), config.weight_decay, config.decay_all) == ("adamw", 2e-4, 1e-4, True)
    assert (config.proposals, config.roi_samples) == (1000, 512)
    check_1x(config)


def check_1x(config):
    """What mmdetection's schedule_1x and coco_detection have in common for all detectors."""
    assert (config.batch_size, config.accumulate, config.epochs) == (2, 1, 12)
    assert (config.sched, config.decay_milestones, config.decay_rate) == ("multistep", [8, 11], 0.1)
    # 117,266 images of COCO have annotations.
    assert round(config.warmup() * 117_266 / 16) == pytest.approx(500, abs=2)
    assert config.warmup_lr == pytest.approx(0.001 * config.lr)
    assert (config.clip_grad, config.drop_path, config.model_ema) == (None, 0, False)
    assert (config.input_size, config.train_sizes, config.scale_jitter) == ((800, 1333), [], None)
    assert (config.hflip, config.vflip, config.color_jitter) == (0.5, 0, 0)
    assert (config.fpn_channels, config.head_norm) == (256, "none")
    assert (config.anchor_sizes, config.anchor_ratios) == ([32, 64, 128, 256, 512], [0.5, 1, 2])
    assert (config.score_thr, config.nms_thr, config.max_dets) == (0.05, 0.5, 100)


def test_pvts_mask_rcnn_of_many_scales():
    """PVT, detection/configs/mask_rcnn_pvt_v2_b2_fpn_3x_mstrain.py"""
    config = recipe_config("maskrcnn_3x_ms")
    assert (config.opt, config.scaled_lr(8), config.weight_decay, config.decay_all) == ("adamw", 1e-4, 0.05, False)
    assert (config.epochs, config.decay_milestones) == (36, [27, 33])
    assert config.train_sizes == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    once = recipe_config("maskrcnn_1x")
    differ = {key for key, value in asdict(config).items() if value != getattr(once, key)}
    longer = {"epochs", "decay_milestones", "train_sizes"}
    assert differ == longer | {"lr", "warmup_lr", "weight_decay", "decay_all"}


def test_the_papers_semantic_fpn():
    """dfformer, segmentation/configs/fpn/dfformer_s18_fpn.py and its _base_"""
    config = recipe_config("semantic_fpn")
    assert (config.arch, config.decoder, config.decoder_args) == ("dfformer_s18", "fpn", {"decoder_dropout": 0.1})
    assert (config.opt, config.scaled_lr(8), config.weight_decay, config.decay_all) == ("adamw", 2e-4, 1e-4, True)
    assert (config.batch_size, config.accumulate) == (4, 1)
    assert config.epochs * (20_210 // 32) == 40_384
    assert (config.sched, config.decay_rate, config.min_lr, config.warmup()) == ("poly", 0.9, 0, 0)
    assert (config.clip_grad, config.drop_path, config.model_ema) == (None, 0, False)
    assert (config.shorter_side, config.scale, config.input_size, config.max_share) == (512, (0.5, 2.0), 512, 0.75)
    assert (config.hflip, config.color_jitter) == (0.5, 0.3)
    assert (config.ignore_index, config.test_mode) == (255, "whole")


@pytest.mark.parametrize("name", DENSE)
def test_the_small_ones_alone_are_for_small_data(name):
    config = recipe_config(name)
    small = name.startswith("small_")
    assert config.arch.endswith("_h_n") is (config.lr_base_batch is None) is small
    assert config.warmup() < 2
    assert not config.pretrained


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_recipes_network_can_be_made(name):
    """On a tiny backbone where the recipe's is a large one."""
    recipe = RECIPES[name]
    arch = "gfnet_h_n" if name.startswith("small_") else "test_gfnet_h"
    model = recipe_config(name, arch=arch).make_model(["a", "b"])
    assert model.arguments["arch"] == arch
    for field in recipe.settings.keys() & (model.arguments.keys() - {"arch"}):
        kept, value = model.arguments[field], recipe.settings[field]
        assert kept == (list(value) if isinstance(value, tuple) else value), field


def distinct():
    """One recipe of each family and of each setting, of those of classification."""
    seen = {}
    for recipe in RECIPES.values():
        if recipe.name in DENSE:
            continue
        settings = {k: v for k, v in recipe.settings.items() if k != "data_set"}
        settings["arch"] = family(settings.get("arch", "freqformer_n"))
        seen.setdefault(json.dumps(settings, sort_keys=True), recipe.name)
    return list(seen.values())


@pytest.fixture
def check_tiny_run(class_folders, tmp_path):
    """Train two steps of a recipe on a tiny model of its family, and see that its settings were those of the run."""

    def check(name):
        recipe = RECIPES[name]
        arch = TINY[family(recipe.settings.get("arch", "freqformer_n"))]
        changes = {
            **{"arch": arch, "data_set": "IMNET", "data_path": str(class_folders()), "epochs": 1, "batch_size": 9},
            **{"cooldown_epochs": 0, "num_workers": 0, "accelerator": "cpu", "precision": "32-true"},
            **{"output_dir": str(tmp_path / "run")},
        }
        if recipe.command == "adapt":
            del changes["arch"]
            changes |= {"encoder": "test_vit", "pretrained": False, "input_size": 32}
        if "input_size" in recipe.settings:
            changes["input_size"] = 48
        if "finetune" in recipe.needs:
            # ImageNet's weights have another number of classes.
            changes["finetune"] = str(tmp_path / "weights.safetensors")
            save_weights(Path(changes["finetune"]), create_model(arch, num_classes=7).state_dict(), None)
        if "token_label_data" in recipe.needs:
            changes |= {"token_label_data": str(tmp_path / "maps"), "token_label_size": None}
            write_maps(Path(changes["data_path"]), tmp_path / "maps")
        config = recipe_config(name, **changes)
        metrics = run(config)
        assert len(metrics["epochs"]) == 1
        kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
        assert kept == yaml.safe_load(yaml.safe_dump(asdict(config)))
        for field, value in recipe.settings.items():
            if field not in changes and field != "warmup_epochs":
                assert kept[field] == value, field

    return check


def write_maps(root, folder):
    """Maps of the classes' own names, for every training image."""
    Description("a teacher", "its weights", num_classes=3, top_k=1, grid=[2, 2], input_size=[32, 32]).write(folder)
    for target, label in enumerate(sorted(path.name for path in (root / "train").iterdir())):
        for image in (root / "train" / label).iterdir():
            best = torch.full((1, 2, 2), target)
            write_map(folder / "train" / label / f"{image.stem}.safetensors", best * 0.0 + 9, best)


FAST = ["imagenet_gfnet_ti", "imagenet_dfformer_s18", "finetune_384", "freqfit_vtab", "timm"]


@pytest.mark.parametrize("name", FAST)
def test_a_recipe_trains(check_tiny_run, name):
    check_tiny_run(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in distinct() if name not in FAST])
def test_every_recipe_trains(check_tiny_run, name):
    check_tiny_run(name)


def test_the_table_lists_every_recipe(command):
    answer = command("recipes")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(RECIPES)
    for line, recipe in zip(lines[1:], RECIPES.values(), strict=True):
        assert f" {recipe.command} " in line
        assert recipe.what in line
        assert recipe.source in line


def test_json_has_an_object_a_recipe(command):
    rows = [json.loads(line) for line in command("recipes", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == list(RECIPES)
    assert rows[0] == {**asdict(RECIPES["imagenet_gfnet_ti"]), "needs": []}
    assert json.loads(command("recipes", "timm", "--json").out)["settings"] == RECIPES["timm"].settings


@pytest.mark.parametrize("name", ["timm", "imagenet-gfnet-ti", "transfer_cars", "maskrcnn_1x"])
def test_a_recipe_is_printed_as_its_differences_a_line_each(command, name):
    answer = command("recipes", name)
    assert answer.code == 0
    assert answer.out.count("\n") == len(get_recipe(name).settings)
    assert yaml.safe_load(answer.out) == get_recipe(name).settings


def test_commands_refuse_an_unknown_recipe(refused):
    assert "did you mean timm?" in refused("recipes", "tim")
    assert "there is no recipe 'xyzzy'" in refused("train", "--recipe", "xyzzy", "--data-set", "DIGITS")
    assert "needs --finetune" in refused("train", "--recipe", "transfer_cars", "--data-path", "x")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("maskrcnn_1x", "detect train"),
        ("semantic_fpn", "segment train"),
        ("freqfit_vtab", "adapt"),
        ("timm", "train"),
    ],
)
def test_a_recipe_of_another_command_is_refused_with_its_name(refused, name, right):
    others = [("train",), ("adapt",), ("adapt", "sweep", "--tasks", "svhn")]
    for words in others:
        if right != words[0]:
            said = refused(*words, "--recipe", name, "--data-path", "x")
            assert f"the recipe {name} is for `freqformer {right}`" in said


def test_a_recipe_gives_way_to_a_config_file_and_that_to_flags(command, class_folders, tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 0.003\nwarmup_lr: 1.0e-5\nepochs: 1\n")
    line = "--arch test_gfnet -b 9 --num-workers 0 --accelerator cpu --cooldown-epochs 1 --warmup-lr 1e-7"
    sources = ["--recipe", "timm", "--config", tmp_path / "c.yaml"]
    answer = command("train", class_folders(), *line.split(), *sources, "--output-dir", tmp_path / "a")
    assert answer.code == 0, answer.err
    kept = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    expected = {"opt": "sgd", "lr": 0.003, "warmup_lr": 1e-7, "lr_base_batch": None, "min_lr": 1e-5, "epochs": 1}
    assert {field: kept[field] for field in expected} == expected
    assert answer.out.startswith("defaults of the recipe timm: opt: sgd,")

    again = command("train", "--config", tmp_path / "a/config.yaml", "--output-dir", tmp_path / "b")
    assert again.code == 0, again.err
    assert "defaults of the recipe" not in again.out
    replayed = yaml.safe_load((tmp_path / "b/config.yaml").read_text())
    assert replayed == {**kept, "output_dir": str(tmp_path / "b")}
    rows = [json.loads((tmp_path / run / "metrics.json").read_text())["epochs"] for run in "ab"]
    assert [row["train/loss"] for row in rows[0]] == [row["train/loss"] for row in rows[1]]
    assert [row["lr"] for row in rows[0]] == pytest.approx([row["lr"] for row in rows[1]])
    assert len(rows[0]) == 2  # one of the schedule, one of the cool-down
    assert rows[0][1]["lr"] == pytest.approx(1e-5)


def test_the_page_has_the_table_of_recipes():
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    expected = [
        f"| `{recipe.name}` | `{recipe.command}` | {recipe.what} | {recipe.source} |".replace("<", "&lt;")
        for recipe in RECIPES.values()
    ]
    assert [row for row in rows if row.split("`")[1] in RECIPES] == expected
