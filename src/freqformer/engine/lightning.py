"""How this package sets Lightning up: precision, progress, and silence."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..errors import FreqFormerError
from .processes import rank

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def progress_bars() -> list[Callback]:
    """A progress bar on a terminal; elsewhere none, and the line that each epoch prints has to do."""
    return [RichProgressBar()] if sys.stdout.isatty() and rank() == 0 else []


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice out of the output; its errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", module=r"torchmetrics\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's precision for a run's setting.

    Args:
        precision: Lightning's value, or ``"auto"``: bf16-mixed where the hardware multiplies in bfloat16.
        accelerator: Lightning's value.
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_multiplies_bf16() else "32-true"


def _cpu_multiplies_bf16() -> bool:
    # A training step of freqformer_n, batch 128, takes 1/1.3 to 1/1.6 of float32's time with AMX and 1/2.9 on
    # an AMD EPYC with AVX-512 BF16.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@contextmanager
def wrong_settings() -> Iterator[None]:
    """Say in one line what Lightning refuses of an accelerator or a precision."""
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FreqFormerError(
            f"these settings do not work here: {reason} (see --precision, --accelerator, --devices)"
        ) from error


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step instead of handing it back to the system.

    On a CPU the pages of every activation are otherwise taken anew in each step, which costs up to a
    sixth of a training step of freqformer_n. Only glibc can be told; elsewhere nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, 2**31 - 1)
