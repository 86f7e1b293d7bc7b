"""What a source does not show: files that are not images, which are counted, and images that are missing."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence

from kdkit.data.sources.image import suffix_of
from kdkit.errors import DatasetError

_logger = logging.getLogger(__name__)
_SHOWN = 5


def skipped_of(source: object) -> Sequence[str]:
    """What was left out of a source, or of the source within it, because of `skip_missing`: one text per entry."""
    while source is not None:
        if (skipped := getattr(source, "skipped", None)) is not None:
            return list(map(str, skipped))
        source = getattr(source, "source", None)
    return ()


def describe_skipped(source: object) -> str:
    """How many entries `skip_missing` left out, after a comma; empty if none."""
    return f", {len(skipped):,} entries skipped" if (skipped := skipped_of(source)) else ""


class LeftOut:
    """Accounts for everything in a folder or archive that is not listed as an image.

    Args:
        origin: path of the folder or archive, for messages.
        skip_missing: whether what should be an image, and is none, is skipped; otherwise it is an error.

    Attributes:
        skipped: one text for each entry that was skipped; it does not name `origin`, which differs between machines.
    """

    def __init__(self, origin: str, skip_missing: bool) -> None:
        self.origin = origin
        self.skipped: list[str] = []
        self._skip_missing = skip_missing
        self._others: Counter[str] = Counter()
        self._first = ""

    def count(self, path: str) -> None:
        """Counts a file that is not an image."""
        self._others[suffix_of(path) or "without suffix"] += 1
        self._first = min(self._first or path, path)

    def miss(self, message: str, remedy: str) -> None:
        """Notes an entry that should hold an image: `message` names it and says what is wrong.

        Raises:
            DatasetError: such entries are not skipped.
        """
        if not self._skip_missing:
            raise DatasetError(f"{message}: {remedy}, or give --skip-missing")
        origin = re.escape(repr(self.origin)[1:-1])
        within = re.sub(rf" in (the (tar|zip file) )?(['\"]){origin}\3", "", message)
        self.skipped.append(re.sub(rf"(['\"]){origin}/", r"\1", within))

    def but(self) -> str:
        """What a place without images holds instead, for a message."""
        return f" but {self._counted()}" if self._others else ""

    def _counted(self) -> str:
        counted = ", ".join(f"{number:,} {suffix}" for suffix, number in self._others.most_common(_SHOWN))
        return counted + (f", {len(self._others) - _SHOWN} further suffixes" if len(self._others) > _SHOWN else "")

    def log(self) -> None:
        """Logs, in one line each, how many files of which suffix are not images, and what was skipped."""
        if self._others:
            _logger.warning(
                "ignored %d files in %s that are not images: %s (the first is %r)",
                self._others.total(),
                self.origin,
                self._counted(),
                self._first,
            )
        if self.skipped:
            self.skipped.sort(key=lambda text: (text.casefold(), text))  # a file system lists in any order
            shown = "; ".join(self.skipped[:_SHOWN]) + ("; ..." if len(self.skipped) > _SHOWN else "")
            _logger.warning("skipped %d entries in %s: %s", len(self.skipped), self.origin, shown)
