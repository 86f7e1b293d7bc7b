"""Models of a user's code, by the import path `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from kdkit.errors import ConfigError, UnknownNameError, first_line, nearest

_PATH = re.compile(r"(?!hf[-_]hub:|local[-_]dir:|torchvision:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DEFAULT_CLASSES = 1000


def is_import_path(name: str) -> bool:
    """Whether `name` has the form `package.module:function`."""
    return _PATH.fullmatch(name) is not None


def find_function(name: str, subject: str) -> Callable[..., Any]:
    """Imports the function; the working directory is searched as well.

    Raises:
        UnknownNameError: there is no such module or function.
        ConfigError: its module raises an error when it is imported.
    """
    module_name, _, function_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise UnknownNameError(f"the {subject} {name!r} names no module that can be imported: {error}") from error
        raise ConfigError(f"the module of the {subject} {name!r} cannot be imported: {first_line(error)}") from error
    except (Exception, SystemExit) as error:  # the module is the user's; a script ends the process
        reason = "it ends the process" if isinstance(error, SystemExit) else first_line(error)
        raise ConfigError(f"the module of the {subject} {name!r} cannot be imported: {reason}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UnknownNameError(
            f"the module {module_name} has no function {function_name!r}{nearest(function_name, known)}"
        )
    found: Callable[..., Any] = function
    return found


def create_imported_model(name: str, subject: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """Calls the function with the options, and with `pretrained` and `num_classes` only if it takes them.

    Raises:
        ConfigError: it does not return a module, or takes no `pretrained` although that was given.
    """
    function = find_function(name, subject)
    takes = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if "pretrained" in takes:
        options["pretrained"] = pretrained
    elif pretrained and subject == "student":
        raise ConfigError(f"the {subject} {name!r} takes no argument pretrained: leave it out")
    if "num_classes" in options and not takes_any and "num_classes" not in takes:
        raise ConfigError(f"the {subject} {name!r} takes no argument num_classes: add one")
    try:
        model = function(**options)
    except SystemExit as error:
        raise ConfigError(f"the {subject} {name!r} ends the process, expected an nn.Module") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the {subject} {name!r} returned {type(model).__name__}, expected an nn.Module")
    _check_made(model, f"the {subject} {name!r}")
    if "num_classes" in options and not hasattr(model, "num_classes"):
        model.num_classes = options["num_classes"]
    return model


def _check_made(model: nn.Module, subject: str) -> None:
    """Raises ConfigError for weights without values: of lazy modules, or on the device meta if that is not meant."""
    for name, weight in model.named_parameters():
        if isinstance(weight, UninitializedParameter):
            raise ConfigError(f"{subject} has a lazy weight, {name}: run the model once on an image in the function")
        if weight.is_meta and not torch.empty(0).is_meta:
            raise ConfigError(f"{subject} has the weight {name} on the device meta, without values: make it on the CPU")
