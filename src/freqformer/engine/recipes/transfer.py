"""From ImageNet's weights to other sizes and data sets; the three isotropic families share these lines.

While they fine-tune, the papers' scripts keep the network in evaluation mode (`set_training_mode=args.finetune == ''`
in main_gfnet.py and its descendants), so nothing is dropped: `drop_path` is 0 throughout.
"""

from .base import Settings, recipe, recipe_of_each

FINETUNE: Settings = {"drop_path": 0.0}
"""What `--finetune` alone implies."""

LINE: Settings = {
    **FINETUNE,
    "arch": "freqformer_xs",
    "batch_size": 64,
    "epochs": 1000,
    "lr": 1e-4,
    "weight_decay": 1e-4,
}
"""The one printed transfer line, of 8 processes."""


@recipe("finetune", needs=("finetune",))
def finetune() -> Settings:
    """What --finetune implies: no stochastic depth.

    Source: GFNet, SpectFormers and freqformer, train_one_epoch(set_training_mode=args.finetune == '') in main_*.py.
    """
    return FINETUNE


@recipe("finetune_384", needs=("finetune",))
def finetune_384() -> Settings:
    """Weights of 224 pixels fine-tuned at 384: 30 epochs of a constant learning rate, 512 images a step; any --arch.

    Source: GFNet, SpectFormers and freqformer, README "To finetune a pre-trained model at higher resolution".
    """
    return {
        **FINETUNE,
        "arch": "freqformer_xs",
        "input_size": 384,
        "batch_size": 64,
        "epochs": 30,
        "lr": 5e-6,
        "min_lr": 5e-6,
        "weight_decay": 1e-8,
    }


@recipe("transfer_cars", needs=("finetune",))
def cars() -> Settings:
    """Weights of ImageNet-1K transferred to Stanford Cars: 1000 epochs, 512 images a step; any --arch.

    Source: GFNet, SpectFormers and freqformer, README "Transfer Learning Datasets", and main_*_transfer.py, whose
    defaults are main_*.py's.
    """
    return {**LINE, "data_set": "CARS"}


@recipe_of_each("cifar10", "cifar100", "flowers", "pets", name="transfer_{}", needs=("finetune",))
def small(data_set: str) -> Settings:
    """Weights of ImageNet-1K transferred to {}: 1000 epochs, 512 images a step; any --arch.

    The abstract of SpectFormer names these data sets but Oxford Pets, for which there is the line alone.

    Source: SpectFormers and freqformer, vanilla_architecture/main.sh (a line for each data set, all of one setting).
    """
    return {**LINE, "data_set": data_set.upper()}


@recipe_of_each("inat", "inat19", name="transfer_{}", needs=("finetune",))
def inaturalist(data_set: str) -> Settings:
    """Weights of ImageNet-1K transferred to {} (iNaturalist): the setting of the cars; any --arch.

    The scripts take this data set, but neither a line nor a figure is printed for it, so its epochs are a guess.

    Source: main_*_transfer.py of GFNet, SpectFormers and freqformer (--data-set), with the line of the cars.
    """
    return {**LINE, "data_set": data_set.upper()}
