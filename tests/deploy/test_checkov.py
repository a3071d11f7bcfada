"""checkov's checks of Kubernetes manifests, on every cell; exceptions have a reason."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from conftest import Cell
from controller import ROOT

ENVIRONMENT = ROOT / ".venv-checkov"

# (check, object): why it does not have to meet the check.
WAIVED = {
    ("CKV_K8S_15", "wan22-redis"): "always pull: the tag is a release's, and a node without a way"
    " to the registry still restarts",
    ("CKV_K8S_43", "wan22-redis"): "digest: an offline site's registry may have another for the"
    " same release",
}


@pytest.fixture(scope="module")
def failed(
    cells: dict[str, Cell], tmp_path_factory: pytest.TempPathFactory
) -> set[tuple[str, str]]:
    """Check and object of each finding; every distinct manifest is looked at once."""
    subprocess.run(["make", f"{ENVIRONMENT.name}/installed"], cwd=ROOT, check=True, timeout=900)
    directory = tmp_path_factory.mktemp("checkov")
    # By tag only where nothing was published yet, which is never applied.
    published = {
        f"{index}-{name}": re.sub(
            r"(image: 192\.168\.0\.34:5001/ai/wan2\.2-t2v-5b):v\d", rf"\1@sha256:{'0' * 64}", text
        )
        for index, cell in enumerate(cells.values())
        for name, text in cell.texts.items()
    }
    seen: set[str] = set()
    for name, text in published.items():
        if text not in seen:
            seen.add(text)
            (directory / f"{name}.yaml").write_text(text)
    assert len(seen) > 50
    return look(directory)


def look(directory: Path) -> set[tuple[str, str]]:
    done = subprocess.run(
        [
            *(str(ENVIRONMENT / "bin/checkov"), "--directory", str(directory)),
            *("--framework", "kubernetes", "--output", "json", "--compact", "--quiet"),
            # Its vendor's page for each check; nothing is asked of the internet.
            *("--skip-download", "--soft-fail"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 20, report["summary"]
    return {
        (check["check_id"], check["resource"].split(".")[-1])
        for check in report["results"]["failed_checks"]
    }


def test_only_what_is_waived_is_found(failed: set[tuple[str, str]]) -> None:
    assert failed == set(WAIVED)


def test_it_finds_what_is_wrong(documented: Cell, failed: object, tmp_path: Path) -> None:
    text = documented.texts["deployment-wan22"]
    assert "readOnlyRootFilesystem: true" in text
    (tmp_path / "deployment.yaml").write_text(
        text.replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
    )
    assert ("CKV_K8S_22", "wan22-t2v-deployment") in look(tmp_path)
