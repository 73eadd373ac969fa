"""Any weight file that this package reads, as safetensors in its own names."""

from pathlib import Path

from ..checkpoints import read_description, read_weights, save_weights
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
    target = Path(target)
    if target.suffix != ".safetensors":
        raise FreqFormerError(f"{target} must be a .safetensors file")
    if target.exists() and not overwrite:
        raise FreqFormerError(f"{target} exists: name another file, or pass --overwrite")
    if not target.parent.is_dir():
        raise FreqFormerError(f"there is no folder {target.parent}")
    official = read_weights(source)
    state, mapped = to_canonical(official, str(source))
    description = None
    if arch is not None or read_description(source) is not None:
        model, description = load_described(source, arch=arch)
        state = model.state_dict()
    save_weights(target, state, description)
    what = description["architecture"] if description else "bare weights (--arch would check and describe them)"
    return f"{target}: {what}, {len(state)} tensors, {len(mapped)} keys mapped from an official layout"
