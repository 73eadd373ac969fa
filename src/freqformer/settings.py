"""A run's settings from a command line: its flags, a recipe, a config file, and the run that it goes on with."""

import math
from collections.abc import Container
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FreqFormerError
from .launchers import place

if TYPE_CHECKING:
    from .engine.recipes import Recipe
    from .flags import Flags
    from .tasks import RunConfig


def settings_of_a_run(
    flags: "Flags",
    words: list[str],
    config_type: type["RunConfig"],
    *,
    timm: bool = False,
    chosen: Container[str] = (),
) -> dict[str, Any]:
    """A run's fields and its other flags, as recipe, config file, the run to resume and the flags say.

    Those that are ``chosen`` elsewhere are neither flags nor taken from a recipe.
    """
    from .engine import RESUME_LAST
    from .engine.recipes import fit_recipe
    from .engine.storage import CONFIG

    flags.fields(config_type, optional_value={"resume": RESUME_LAST}, without=chosen)
    flags.value("recipe", str, "a paper's settings as defaults; `freqformer recipes` lists them, none is none")
    flags.positional("data", "the folder the data set lies in, as --data-path", optional=True)
    flags.config_file()
    args = flags.parse(words)
    recipe = _recipe(args, timm=timm)
    if recipe is not None:
        if recipe.command != config_type.command:
            raise FreqFormerError(f"the recipe {recipe.name} is for `freqformer {recipe.command}`")
        recipe = replace(recipe, settings={k: v for k, v in recipe.settings.items() if k not in chosen})
        # What is given, by a config file or a flag, changes the recipe.
        flags.defaults(recipe.settings)
        args = flags.parse(words)
    if args["resume"] == RESUME_LAST and args["output_dir"] is not None:
        # A run to resume is described by its own folder; what is given here changes it.
        kept = Path(args["output_dir"]) / CONFIG
        if kept.is_file():
            args = flags.parse(words, defaults=kept)
    if recipe is not None:
        fit_recipe(recipe, args)
        if speaks():
            print(f"defaults of the recipe {recipe.name}: {as_yaml(recipe.settings, ', ')}", flush=True)
    del args["recipe"]
    data = args.pop("data")
    args["data_path"] = args["data_path"] if data is None else data
    return args


def settings_of_an_adaptation(
    flags: "Flags", words: list[str], config_type: type["RunConfig"], *, chosen: Container[str] = ()
) -> dict[str, Any]:
    """An adaptation's fields; its methods' options are flags of their own."""
    from .adapters import METHODS

    options = {kind.Options for kind in METHODS.values()}
    for kind in sorted(options, key=lambda kind: kind.__name__):
        flags.fields(kind, unset=True)
    args = settings_of_a_run(flags, words, config_type, chosen=chosen)
    given = {name: args.pop(name) for kind in options for name in (field.name for field in fields(kind))}
    args["options"] = {**args["options"], **{name: value for name, value in given.items() if value is not None}}
    return args


def _recipe(args: dict[str, Any], *, timm: bool) -> "Recipe | None":
    """The recipe that a command line names, or the one that its spelling implies."""
    from .data import VTAB_TASKS
    from .engine.recipes import get_recipe

    implied = "timm" if timm else "finetune" if args.get("finetune") is not None else "none"
    if tasks := args.get("tasks"):
        of_vtab = all(task == "all" or task.removeprefix("vtab:") in VTAB_TASKS for task in tasks)
        implied = "freqfit_vtab" if of_vtab else "none"
    name = args["recipe"] or implied
    return None if name == "none" else get_recipe(name)


def as_yaml(settings: dict[str, Any], between: str) -> str:
    """Settings as a line, or as lines of YAML."""
    import yaml

    def value(one: Any) -> str:
        # In brackets and without them: a list or a dict stays on its line, and a number has no document's end.
        return yaml.safe_dump([one], default_flow_style=True, width=math.inf).strip()[1:-1]

    return between.join(f"{name}: {value(one)}" for name, one in settings.items())


def speaks() -> bool:
    """Whether this process prints the results, of those that a launcher started."""
    here = place()
    return here is None or here.rank == 0
