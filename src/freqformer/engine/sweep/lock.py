"""One sweep at a time in a folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import FreqFormerError

LOCK = ".sweep.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from sweeping in a folder; the system frees it when this one ends, however it ends.

    The lock is the process's own: workers that outlive a killed sweep for a moment do not hold it.

    Raises:
        FreqFormerError: a sweep is running there, or the folder cannot be written or locked.
    """
    # Not every system has it, and only sweeps need it.
    import fcntl

    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except FileExistsError as error:
        raise FreqFormerError(f"{folder} is not a folder: choose another --output-dir") from error
    except OSError as error:
        raise FreqFormerError(f"cannot write into {folder}: {error.strerror}; choose another --output-dir") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise FreqFormerError(f"cannot lock {path}: {error.strerror}; choose another --output-dir") from error
            file.seek(0)
            raise FreqFormerError(
                f"another sweep is running in {folder} (process {file.read().strip()}): wait for it, stop it, or "
                "choose another --output-dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
