"""The names of the models: which are ours, and the papers' spellings of them."""

from difflib import get_close_matches

from timm import list_models

from ..errors import FreqFormerError
from . import dfformer, gfnet, spectformer
from .build import Published

FAMILIES = (gfnet, spectformer, dfformer)


def model_names(pattern: str = "*") -> list[str]:
    """The registered names of this package that match a shell pattern, in natural order."""
    ours = {name for family in FAMILIES for name in family.default_cfgs}
    return [name for name in list_models(pattern) if name in ours]


def spelling(name: str) -> str:
    """A paper's spelling of a name, or of a pattern of names, as this package spells it."""
    ours = name.lower().replace("-", "_")
    return ours + "i" if ours.endswith("_t") else ours


def canonical_name(name: str) -> str:
    """Our name for a model, from ours or a paper's spelling (``gfnet-xs``, ``freqformer-t``, ``GFNet-XS``).

    Raises:
        FreqFormerError: no such model; the nearest names are suggested.
    """
    candidate = spelling(name)
    names = model_names()
    if candidate in names:
        return candidate
    near = get_close_matches(candidate, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`freqformer models` lists them"
    raise FreqFormerError(f"there is no model {name!r}: {hint}")


def published(name: str) -> Published | None:
    """What its authors print of a model, or None where they print nothing."""
    for family in FAMILIES:
        if name in family.PUBLISHED:
            return family.PUBLISHED[name]
    return None
