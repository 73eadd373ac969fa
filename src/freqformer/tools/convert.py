"""Weight files made of weight files: any one in this package's own names, or the mean of several."""

from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import average_weights, read_description, read_weights, save_weights
from ..errors import FreqFormerError
from ..factory import load_described
from ..models.official import to_canonical


def convert(source: str | Path, target: str | Path, *, arch: str | None = None, overwrite: bool = False) -> str:
    """Convert a weight file to safetensors.

    Args:
        source: what `freqformer.load_checkpoint` reads.
        target: the file to write, ``.safetensors``.
        arch: the model's name, for a file that does not say it; the weights are then checked against the model,
            and the new file says what it holds. Without it bare weights are renamed alone.
        overwrite: whether an existing target may be replaced.

    Returns:
        What was done, in words.

    Raises:
        FreqFormerError: an unreadable source, weights that are not the named model's, or an existing target.
    """
    target = _new_file(target, overwrite)
    official = read_weights(source)
    description = read_description(source)
    # What was adapted may be any model of timm, with timm's names.
    adapted = description is not None and "adapters" in description
    state, mapped = (official, {}) if adapted else to_canonical(official, str(source))
    if arch is not None or description is not None:
        model, description = load_described(source, arch=arch)
        state = model.state_dict()
    save_weights(target, state, description)
    what = description["architecture"] if description else "bare weights (--arch would check and describe them)"
    return f"{target}: {what}, {len(state)} tensors, {len(mapped)} keys mapped from an official layout"


def average(sources: Sequence[str | Path], target: str | Path, *, overwrite: bool = False) -> str:
    """Write the mean of several checkpoints of one model.

    Args:
        sources: weight files or runs' folders.
        target: the file to write, ``.safetensors``; it says of itself what the first source says.
        overwrite: whether an existing target may be replaced.

    Returns:
        What was done, in words.

    Raises:
        FreqFormerError: an unreadable source, sources of different models, or an existing target.
    """
    target = _new_file(target, overwrite)
    state = average_weights(sources)
    save_weights(target, state, read_description(sources[0]))
    return f"{target}: mean of {len(sources)} checkpoints, {len(state)} tensors"


def _new_file(target: str | Path, overwrite: bool) -> Path:
    target = Path(target)
    if target.suffix != ".safetensors":
        raise FreqFormerError(f"{target} must be a .safetensors file")
    if target.exists() and not overwrite:
        raise FreqFormerError(f"{target} exists: name another file, or pass --overwrite")
    if not target.parent.is_dir():
        raise FreqFormerError(f"there is no folder {target.parent}")
    return target
