"""The dashboards as Grafana reads them, and their expressions as Prometheus gets them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from promtool import ROOT
from stand_ins import REASONS

FILES = sorted((ROOT / "roles/grafana/files/dashboards").glob("*.json"))


@dataclass(frozen=True)
class Expression:
    """One query of a panel; ``expr`` as it is sent, its variables replaced."""

    board: str
    panel: str
    legend: str
    expr: str

    @property
    def stand_in(self) -> str:
        """Why its data are a stand-in's here; empty for real ones."""
        return next((why for part, why in REASONS.items() if part in self.expr), "")


def boards() -> list[dict[str, Any]]:
    """Every dashboard."""
    return [json.loads(path.read_text()) for path in FILES]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something: all but the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def sent(expr: str, interval: str = "4s") -> str:
    """What Grafana makes of an expression where all values of its variables are chosen."""
    for name, value in {
        "$__rate_interval": interval,
        "$instance": ".*",
        "$namespace": ".*",
    }.items():
        expr = expr.replace(name, value)
    return expr


def expressions(interval: str = "4s") -> list[Expression]:
    """Every query of every panel; ``interval`` is what Grafana makes of `$__rate_interval`."""
    return [
        Expression(
            board["uid"], panel["title"], target["legendFormat"], sent(target["expr"], interval)
        )
        for board in boards()
        for panel in panels(board)
        for target in panel["targets"]
    ]
