"""The ``openai`` SDK, unmodified, against a live server."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from harness import Server, probe

# OpenAI's own service has ended; its SDK says so at every call.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled")


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not asked for", max_retries=0)


def test_it_creates_polls_downloads_lists_and_deletes(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    video = client.videos.create(
        prompt="a dog running", model="tiny", size="96x64", seconds="1",  # type: ignore[arg-type]
        extra_body={"num_inference_steps": 2, "seed": 5},
    )  # fmt: skip
    assert (video.status, video.object) == ("queued", "video")

    video = client.videos.poll(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.size, video.seconds) == ("96x64", "1.042")

    client.videos.download_content(video.id).write_to_file(tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4").num_frames == 25
    client.videos.download_content(video.id, variant="thumbnail").write_to_file(tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")

    first = client.videos.list(limit=1)
    assert first.data[0].id == video.id
    everything = [one.id for one in client.videos.list(limit=1, order="asc")]
    assert everything[-1] == video.id
    assert len(everything) == len(set(everything))

    deleted = client.videos.delete(video.id)
    assert (deleted.deleted, deleted.object) == (True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_it_creates_and_polls_in_one_call(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(prompt="a cat", model="tiny")

    assert video.status == "completed"
    client.videos.delete(video.id)


def test_its_errors_carry_ours(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="a", size="100x64")  # type: ignore[arg-type]

    assert caught.value.code == "invalid_parameter"
    assert caught.value.param == "width"
    assert caught.value.type == "invalid_request_error"
    assert "multiple of 32" in caught.value.message
