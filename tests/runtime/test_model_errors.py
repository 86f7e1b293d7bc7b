"""A model that ends the process in a forward pass is one line; a signal that arrives then is not."""

from __future__ import annotations

import signal

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.runtime.model_errors import model_errors

IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("code", [0, 1, "a message", None])
def test_a_model_that_ends_the_process_is_named(code: object) -> None:
    ended = r"^the student 'odd' ended the process in its forward pass"
    with pytest.raises(ConfigError, match=ended), model_errors("the student 'odd'", IMAGES):
        raise SystemExit(code)


def test_a_signal_during_the_pass_ends_the_process() -> None:
    with pytest.raises(SystemExit), model_errors("the student 'odd'", IMAGES):
        raise SystemExit(128 + signal.SIGTERM)
