"""Models from hubs, which are stand-ins on loopback here (hubs.py): no hub was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from clones import save_tiny
from hubs import COMMIT, NAME, hub
from t2v_server.checkpoint import source as sources
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import read_manifest, verify, work_directory
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.prepare import Prepared, prepare
from t2v_server.profiles import T4

KINDS = ("huggingface", "modelscope")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", shard="4MB")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SECONDS_BETWEEN", 0.01)
    # The library writes down what it has in pieces of 10 MB: more than the tiny model has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000_000)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def fetch(
    kind: str, url: str, target: Path, monkeypatch: pytest.MonkeyPatch, **more: str | None
) -> Prepared:
    """Prepare from the hub at ``url``, as a process with such an environment would."""
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)  # HF_ENDPOINT, read at import
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    return prepare(Wanted(NAME, T4, target, kind, more.get("revision"), more.get("token")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_s_model_is_pinned_verified_and_prepared(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = prepare(Wanted(str(tiny), T4, tmp_path / "by-hand")).manifest
    with hub(kind, tiny) as server:
        done = fetch(kind, server.url, tmp_path / "wan", monkeypatch)

    manifest = done.manifest
    assert manifest.files == by_hand.files
    assert manifest.origin.files == by_hand.origin.files  # all of them, by their hashes
    assert (manifest.origin.kind, manifest.origin.name) == (kind, NAME)
    if kind == "huggingface":
        assert manifest.origin.revision == COMMIT
    verify(tmp_path / "wan", manifest.files)
    weights = [path for _, path, _ in server.asked if path.endswith(".safetensors")]
    assert len(weights) >= 5
    # Nothing of the download stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-hand", "wan"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_connection_goes_on_at_that_byte(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(kind, tiny) as server:
        server.break_after = 3_000_000
        manifest = fetch(kind, server.url, tmp_path / "wan", monkeypatch).manifest
        ranges = [wanted for method, _, wanted in server.asked if method == "GET" and wanted]

    assert server.broken
    assert any(wanted.startswith("bytes=") and wanted != "bytes=0-" for wanted in ranges), ranges
    verify(tmp_path / "wan", manifest.files)


@pytest.mark.parametrize("kind", KINDS)
def test_what_arrives_damaged_is_refused(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(kind, tiny) as server:
        server.lie_about = "text_encoder/model.safetensors"
        with pytest.raises(CheckpointError, match=r"text_encoder/model.safetensors came from .* d"):
            fetch(kind, server.url, tmp_path / "wan", monkeypatch)
        server.lie_about = None
        # And had again, beside what is finished.
        before = len(server.asked)
        assert fetch(kind, server.url, tmp_path / "wan", monkeypatch).changed
        again = [path for _, path, _ in server.asked[before:]]
    assert not any("transformer/diffusion_pytorch_model.safetensors" in path for path in again)


def test_an_interrupted_download_stays_with_its_commit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub("huggingface", tiny) as server:
        server.lie_about = "vae/diffusion_pytorch_model-00001-of-00003.safetensors"
        with pytest.raises(CheckpointError):
            fetch("huggingface", server.url, tmp_path / "wan", monkeypatch)
        server.lie_about = None
        asked = len(server.asked)
        with pytest.raises(CheckpointError, match=rf"preparation of revision {COMMIT}, not of"):
            fetch("huggingface", server.url, tmp_path / "wan", monkeypatch, revision="a" * 40)
        fetch("huggingface", server.url, tmp_path / "wan", monkeypatch)
        (first, *_) = [path for _, path, _ in server.asked[asked:] if "/api/" in path]
    assert f"/revision/{COMMIT}" in first  # not main, whatever that is by now
    assert read_manifest(tmp_path / "wan").origin.revision == COMMIT


def test_a_token_is_sent_to_the_hub_and_kept_nowhere(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_NotForEverybody"
    with hub("huggingface", tiny) as server:
        server.token = token
        with pytest.raises(CheckpointError, match=r"answered 401 for .*--token-file") as refused:
            fetch("huggingface", server.url, tmp_path / "wan", monkeypatch, token="hf_wrong")
        assert "hf_wrong" not in str(refused.value)
        fetch("huggingface", server.url, tmp_path / "wan", monkeypatch, token=token)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_is_away_is_said(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be had from http://127.0.0.1:1 .*mirror"):
        fetch(kind, "http://127.0.0.1:1", tmp_path / "wan", monkeypatch)
    assert not (tmp_path / "wan").exists()
    assert work_directory(tmp_path / "wan").is_dir()


def test_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    for name in ("wan", "a/b/c", "../wan", "Wan-AI/../etc"):
        with pytest.raises(CheckpointError, match=r"is no (model of a hub|directory)"):
            prepare(Wanted(name, T4, tmp_path / "wan"))
    with pytest.raises(CheckpointError, match=r"--revision main is of a hub"):
        prepare(Wanted(str(tmp_path), T4, tmp_path / "wan", revision="main"))
