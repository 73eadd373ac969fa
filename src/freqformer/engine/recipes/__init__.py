"""The papers' settings by name: `--recipe NAME`, listed by `freqformer recipes`."""

from . import gfnet, spectformer, dfformer, transfer, freqfit, dense, timm  # noqa: F401, I001  (the order of the list)
from .base import RECIPES, Recipe, fit_recipe, get_recipe, recipe_config

__all__ = ["RECIPES", "Recipe", "fit_recipe", "get_recipe", "recipe_config"]
