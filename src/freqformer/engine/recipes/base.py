"""What a recipe is: a small function whose every difference from the default settings is visible."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...errors import FreqFormerError

if TYPE_CHECKING:
    from ...tasks import RunConfig

Settings = dict[str, Any]
"""Fields of the command's config that differ from their defaults."""


@dataclass(frozen=True)
class Recipe:
    """A paper's setting by name."""

    name: str
    command: str
    """The command that it is for, such as "train" or "detect train"."""
    what: str
    """What it trains, in one sentence."""
    source: str
    """The paper and the line that it comes from."""
    needs: tuple[str, ...]
    """Fields that only the user can give."""
    settings: Settings
    """Its differences from the defaults."""


RECIPES: dict[str, Recipe] = {}
"""Every recipe by name, in the order of definition."""


def recipe(
    name: str, *, command: str = "train", needs: tuple[str, ...] = ()
) -> Callable[[Callable[[], Settings]], Callable[[], Settings]]:
    """Register a function of no argument as a recipe; its docstring says what it is and, after "Source:", whence."""

    def register(function: Callable[[], Settings]) -> Callable[[], Settings]:
        _register(name, command, inspect.getdoc(function) or "", needs, function())
        return function

    return register


def recipe_of_each(
    *values: str, name: str, command: str = "train", needs: tuple[str, ...] = ()
) -> Callable[[Callable[[str], Settings]], Callable[[str], Settings]]:
    """Register a function of one word as a recipe for each word; ``{}`` stands for it in name and docstring."""

    def register(function: Callable[[str], Settings]) -> Callable[[str], Settings]:
        for value in values:
            text = (inspect.getdoc(function) or "").replace("{}", value)
            _register(name.replace("{}", value), command, text, needs, function(value))
        return function

    return register


def _register(name: str, command: str, text: str, needs: tuple[str, ...], settings: Settings) -> None:
    what, _, rest = text.partition("\n\n")
    _, _, source = rest.partition("Source: ")
    RECIPES[name] = Recipe(name, command, _line(what).rstrip("."), _line(source).rstrip("."), needs, settings)


def _line(text: str) -> str:
    return " ".join(text.split())


def get_recipe(name: str) -> Recipe:
    """A recipe by name, spelt with dashes or underscores.

    Raises:
        FreqFormerError: there is none of that name; the nearest names are suggested.
    """
    spelling = name.lower().replace("-", "_")
    if spelling in RECIPES:
        return RECIPES[spelling]
    near = difflib.get_close_matches(spelling, RECIPES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`freqformer recipes` lists them"
    raise FreqFormerError(f"there is no recipe {name!r}: {hint}")


def fit_recipe(recipe: Recipe, given: dict[str, Any]) -> None:
    """Check and fit settings that a recipe and its user's changes make, in place.

    Args:
        recipe: the recipe.
        given: every field of the config by name.

    Raises:
        FreqFormerError: a field that the recipe cannot know is missing.
    """
    for field in recipe.needs:
        if given.get(field) is None:
            raise FreqFormerError(f"the recipe {recipe.name} needs --{field.replace('_', '-')}")
    warmup = recipe.settings.get("warmup_epochs")
    if warmup is not None and given["warmup_epochs"] == warmup >= given["epochs"]:
        # The recipe's warm-up is for a long run; the default is a part of a short one.
        given["warmup_epochs"] = None


def recipe_config(name: str, **changes: Any) -> "RunConfig":
    """The complete settings of a recipe: the config of the command that it is for.

    Args:
        name: the recipe's name.
        changes: fields that replace the recipe's.

    Raises:
        FreqFormerError: there is none of that name, or it needs a field that is not given.
    """
    found = get_recipe(name)
    config_type = _config_type(found.command)
    settings = {**asdict(config_type()), **found.settings, **changes}
    fit_recipe(found, settings)
    return config_type(**settings)


def _config_type(command: str) -> type["RunConfig"]:
    """A command's config class; those of detection and segmentation need the extra `dense`, the list does not."""
    if command == "train":
        from ...tasks import ClassificationConfig

        return ClassificationConfig
    if command == "adapt":
        from ...tasks import AdaptationConfig

        return AdaptationConfig
    if command == "detect train":
        from ...tasks.detection import DetectionConfig

        return DetectionConfig
    if command == "segment train":
        from ...tasks.segmentation import SegmentationConfig

        return SegmentationConfig
    raise ValueError(f"no command {command!r} takes recipes")
