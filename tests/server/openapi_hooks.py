"""What schemathesis cannot read in a schema: bounds on two parameters together, and images.

``width * height`` and ``seconds * fps`` are bounded, as the descriptions say, and not all bytes
are an image, which JSON Schema has no words for. Requests that break only those are left to tests
of our own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

MAX_PIXELS = int(os.environ["T2V_TEST_MAX_PIXELS"])
MAX_FRAMES = int(os.environ["T2V_TEST_MAX_FRAMES"])
DEFAULT = {"width": 64, "height": 64, "fps": 24}


@schemathesis.hook
def filter_case(_context: HookContext, case: Case[Any]) -> bool:
    """Keep a request unless two of its parameters are too much together, or it has an image."""
    for fields in (case.query, case.body):
        if not isinstance(fields, Mapping):
            continue
        if "input_reference" in fields:
            return False
        width, height, fps = (_number(fields.get(name), DEFAULT[name]) for name in DEFAULT)
        size = fields.get("size")
        if isinstance(size, str) and size.count("x") == 1:
            sides = [_number(side, 0) for side in size.split("x")]
            if any(side % 32 or not 32 <= side <= 512 for side in sides):
                return False
            width = _number(fields.get("width"), sides[0])
            height = _number(fields.get("height"), sides[1])
        seconds = _number(fields.get("seconds"), 0)
        if width * height > MAX_PIXELS or seconds * fps > MAX_FRAMES + 1:
            return False
    return True


def _number(value: object, default: float) -> float:
    if isinstance(value, (int, float, str)) and value != "":
        try:
            return float(value)
        except ValueError:
            return default
    return default
