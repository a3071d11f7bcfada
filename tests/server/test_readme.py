"""README.md says what is so."""

from __future__ import annotations

import re

from harness import SERVER_ROOT
from t2v_server.config import DEFAULTS

README = (SERVER_ROOT / "README.md").read_text()


def test_the_table_of_variables_agrees_with_the_code() -> None:
    rows = re.findall(r"^\| `(T2V_[A-Z_]+)` \| (.+?) \|", README, re.MULTILINE)

    assert {name: default.strip("`") for name, default in rows} == DEFAULTS
    assert len(rows) == len(DEFAULTS)


def test_every_metric_in_the_readme_exists() -> None:
    defined = set(
        re.findall(r'"(t2v_[a-z_]+)"', (SERVER_ROOT / "t2v_server/metrics.py").read_text())
    )
    named = set(re.findall(r"`(t2v_[a-z_]+)`", README)) - {"t2v_server"}

    assert named == defined
