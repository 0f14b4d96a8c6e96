"""What is named `module:name`, in a recipe or on the command line: somebody else's code."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

BY_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def object_by_name(name: str, where: str) -> Any:
    """What `module:name` means. Modules in the current folder are found too, after all that are installed.

    Raises:
        ValueError: there is no such thing; the message says `where` ("task.name: ") it is named, and why.
    """
    module_name, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        top = module_name.partition(".")[0]
        unknown = isinstance(error, ModuleNotFoundError) and error.name == top
        remedy = f"; go to the folder of {top}, or put it on PYTHONPATH" if unknown else ""
        raise ValueError(f"{where}{name!r} cannot be loaded: {error}{remedy}") from error


def function_by_name(name: str, where: str) -> Any:
    """As `object_by_name`, of something that can be called.

    Raises:
        ValueError: there is no such function.
    """
    found = object_by_name(name, where)
    if not callable(found):
        raise ValueError(f"{where}{name!r} is no function, but {found!r:.80}")
    return found
