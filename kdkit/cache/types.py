"""Types that the whole cache shares."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
"""A NumPy array; the docstring of each use states shape and dtype."""
