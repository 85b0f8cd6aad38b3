"""Tools for files: writing a file as a whole, cleaning up after writers that were killed, and digests of contents."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import tempfile
import time
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that say that there is no room: the disk is full, or a limit of the user or process is met."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Numbers of the errors of file systems without hard links; there two writers of one file may both succeed."""
FORGOTTEN = 24 * 3600
"""Age in seconds above which a temporary file is taken for left behind, whoever wrote it."""


def write_atomically(path: Path, content: bytes, *, new: bool = False) -> None:
    """Write a file as a whole: even after a crash, a reader finds the old content or the new one, never a part.

    Parameters
    ----------
    path : path
        Missing parent folders are created.
    content : bytes
    new : bool
        Whether a file that is there is kept. Of two processes that write at once, one gets the error.

    Raises
    ------
    FileExistsError
        If the file must be new and is there.
    OSError
        If it cannot be written. Where there is no room, the message says so and names the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content, new)
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = f"{os.strerror(error.errno)}: {len(content):,} bytes could not be written; make room and run again"
        raise OSError(error.errno, reason, str(path)) from error


def _write(path: Path, content: bytes, new: bool) -> None:
    """Write a temporary file beside ``path`` and rename it; its name says who writes it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{_writer()}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp gives 0600, with which other users could not read an installed package
        if new:
            try:
                path.hardlink_to(temporary)  # unlike renaming, this fails where the file is there
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                Path(temporary).replace(path)
            Path(temporary).unlink(missing_ok=True)
        else:
            Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _writer() -> str:
    """Return what names this process among all that may write to a shared folder: machine and process."""
    return f"{re.sub('[^A-Za-z0-9-]', '-', platform.node())}.{os.getpid()}"


def clean_temporaries(folder: Path, name: str = "*") -> list[Path]:
    """Remove temporary files of writers that were killed, and return their paths.

    A file of a process that is still running on this machine is kept. One that another machine wrote is kept for a day.

    Parameters
    ----------
    folder : path
        It need not exist.
    name : str
        Only temporaries of files whose name matches this pattern.
    """
    removed = []
    for path in folder.glob(f".{name}.tmp"):
        machine, number = ["", "", *path.name.split(".")][-4:-2]
        mine = machine == _writer().split(".")[0]
        try:
            old = time.time() - path.stat().st_mtime > FORGOTTEN
            if old or (mine and number.isdecimal() and not _runs(int(number))):
                path.unlink()
                removed.append(path)
        except FileNotFoundError:  # its writer has just renamed it
            continue
    return removed


def _runs(process: int) -> bool:
    """Return whether a process of this machine is running; on Windows, where asking would end it, always true."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
