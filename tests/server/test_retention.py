"""Videos have their time: by age, by bytes, with their jobs or without."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness import Server
from t2v_server.config import RetentionSettings
from t2v_server.janitor import Janitor
from t2v_server.jobs.record import Completed, Failed, FailureReason, Parameters
from t2v_server.jobs.sqlite_store import SqliteStore
from t2v_server.jobs.store import Admission, NewJob
from t2v_server.metrics import Metrics
from t2v_server.profiles import TINY
from t2v_server.storage.videos import VideoStore


class House:
    def __init__(self, directory: Path) -> None:
        (directory / "videos").mkdir()
        self.store = SqliteStore(directory / "jobs.db", lease=30)
        self.videos = VideoStore(directory / "videos", "me")

    def make(self, content: bytes = b"0123456789", *, finish: bool = True) -> str:
        new = NewJob("", "tiny", Parameters("a", "", 1, TINY.defaults), 10)
        job = self.store.submit(new, Admission(100)).job
        claim = self.store.claim("me/0", 0)
        assert claim is not None
        with self.videos.draft(job.id) as draft:
            draft.video.write_bytes(content)
            self.videos.publish(job.id, draft, {})
        if finish:
            self.store.finish(claim, Completed(f"{job.id}.mp4", len(content), 1, 1, 1))
        return job.id

    def clean(self, max_age: int | None, max_bytes: int | None) -> int:
        retention = RetentionSettings(max_age, max_bytes, 0)
        return Janitor(self.store, self.videos, retention, 3600, Metrics(), shared=True).clean()

    def files(self) -> set[str]:
        return {video.path.stem for video in self.videos.all()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_without_bounds_everything_stays(house: House) -> None:
    one = house.make()

    assert house.clean(None, None) == 0
    assert house.files() == {one}


def test_the_oldest_go_first_when_there_are_too_many_bytes(house: House) -> None:
    first, second, third = house.make(), house.make(), house.make()

    assert house.clean(None, 25) > 0

    assert house.files() == {second, third}
    assert house.store.get(first) is None
    assert house.store.get(second) is not None
    assert not house.videos.metadata(first).exists()


def test_age_counts_from_the_end_of_the_job(house: House) -> None:
    job = house.make()
    assert house.clean(3600, None) == 0

    time.sleep(1.1)
    assert house.clean(1, None) > 0

    assert house.files() == set()
    assert house.store.get(job) is None


def test_failed_jobs_expire_too(house: House) -> None:
    new = NewJob("", "tiny", Parameters("a", "", 1, TINY.defaults), 10)
    job = house.store.submit(new, Admission(100)).job
    claim = house.store.claim("me/0", 0)
    assert claim is not None
    house.store.finish(claim, Failed(FailureReason.GENERATION, "no"))
    time.sleep(1.1)

    house.clean(1, None)

    assert house.store.get(job.id) is None


def test_files_that_no_job_knows_expire_and_unfinished_jobs_keep_theirs(house: House) -> None:
    unfinished = house.make(finish=False)
    orphan = house.videos.path("01AAAAAAAAAAAAAAAAAAAAAAAA")
    orphan.write_bytes(b"0123456789")
    for path in (orphan, house.videos.path(unfinished)):
        os.utime(path, (time.time() - 7200, time.time() - 7200))

    house.clean(3600, None)
    assert house.files() == {unfinished}
    house.clean(None, 1)
    assert house.files() == {unfinished}


def test_what_is_not_the_servers_is_left_alone(house: House) -> None:
    holiday = house.videos.directory / "holiday.mp4"
    holiday.write_bytes(b"0123456789")
    os.utime(holiday, (0, 0))
    made = house.make()

    house.clean(3600, 5)

    assert holiday.exists()
    assert house.store.get(made) is None


def test_what_cannot_be_removed_keeps_its_job_and_stops_nothing_else(house: House) -> None:
    stuck, other = house.make(), house.make()
    house.videos.thumbnail(stuck).mkdir()  # no file: it cannot be unlinked
    house.clean(None, 1)

    assert house.files() == {stuck}
    assert house.store.get(stuck) is not None
    assert house.store.get(other) is None


def test_a_server_says_when_a_video_expires_and_removes_it(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_RETENTION_AGE="3") as server:
        server.wait_until_ready()
        job = server.wait_for_job(server.create("a dog"))
        assert job["expires_at"] - job["completed_at"] == 3

        deadline = time.monotonic() + 15
        while server.get(f"/v1/videos/{job['id']}").status != 404:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        while list(server.output_dir.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.metric("t2v_video_bytes_expired_total") > job["num_bytes"]
