"""Detection of a full disk while a cache is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kdkit.errors import CacheDiskFullError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_not_full(path: Path, error: OSError) -> None:
    """Raises the typed error if a write to `path` failed for lack of space.

    Raises:
        CacheDiskFullError: the disk or the quota is full, or the file would be too large.
    """
    if error.errno in _NO_ROOM:
        message = f"no room for {str(path)!r}: {os.strerror(error.errno)}; free space and run again"
        raise CacheDiskFullError(message) from error
