"""Which runtime a lab stands with: chosen once, remembered, and not changed under it."""

from pathlib import Path

import pytest

from lab import runtime
from lab.errors import LabError
from lab.runtime import Runtime
from lab.settings import Paths, load_scenario


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("T2V_LAB_STATE", str(tmp_path))
    paths = Paths("unit")
    paths.state.mkdir(parents=True)
    return paths


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    place = tmp_path / "bundle"
    place.mkdir()
    (place / "index.yml").write_text("kubernetes_version: 1.32.13\n")
    return str(place)


def refusal(paths: Paths, name: str | None, bundle: str | None) -> str:
    with pytest.raises(LabError) as caught:
        runtime.choose(paths, name, bundle)
    return str(caught.value)


def test_where_nothing_is_said_it_is_docker_and_a_bundle_is_not_used(
    paths: Paths, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runtime.choose(paths, None, None) == Runtime("docker")
    assert runtime.choose(paths, None, bundle) == Runtime("docker")
    assert "BUNDLE is for a cluster" in capsys.readouterr().out


def test_a_cluster_needs_a_bundle(paths: Paths, tmp_path: Path) -> None:
    assert "needs BUNDLE=<directory>" in refusal(paths, "kubernetes", None)
    assert refusal(paths, "kubernetes", str(tmp_path)) == (
        f"BUNDLE is {tmp_path}, without index.yml: docs/bundle.md says what it holds"
    )
    assert "take one of docker, kubernetes" in refusal(paths, "swarm", None)


def test_what_a_lab_stands_with_is_remembered_and_kept(
    paths: Paths, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runtime.load(paths) is None
    monkeypatch.chdir(Path(bundle).parent)
    chosen = runtime.choose(paths, "kubernetes", "bundle")
    assert chosen == Runtime("kubernetes", bundle)
    runtime.keep(paths, chosen)
    assert runtime.choose(paths, None, None) == runtime.load(paths) == chosen
    assert "stands with kubernetes, and docker is asked for" in refusal(paths, "docker", None)


def test_a_runtime_adds_its_files_after_the_scenario_s() -> None:
    site = load_scenario("site")
    own = site.directory / "vars.yml"
    assert runtime.files(site, None, "vars.yml") == [own]
    assert runtime.files(site, Runtime("docker"), "vars.yml") == [own]
    assert runtime.files(site, Runtime("kubernetes", "/b"), "vars.yml") == [
        own,
        site.directory / "kubernetes/vars.yml",
    ]
    assert runtime.files(site, Runtime("docker"), "prepare.yml") == []
