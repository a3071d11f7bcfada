"""Names that never collide and files that are never half there."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from t2v_server.storage.ids import IdFactory
from t2v_server.storage.videos import StorageError, VideoStore


def test_ids_are_unique_and_sort_in_the_order_they_were_made() -> None:
    new_id = IdFactory()
    ids = [new_id() for _ in range(5000)]

    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)
    assert {len(one) for one in ids} == {26}


def test_ids_of_a_later_millisecond_sort_later_across_servers() -> None:
    first = IdFactory()()
    time.sleep(0.002)
    assert first < IdFactory()()


def test_ids_stay_in_order_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    new_id = IdFactory()
    first = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 0)

    assert new_id() > first


def test_ids_are_unique_across_threads_and_servers() -> None:
    factories = [IdFactory(), IdFactory()]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: factories[number % 2](), range(4000)))

    assert len(set(ids)) == len(ids)


def test_a_name_appears_only_with_the_whole_file(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    with store.writing("01A") as part:
        part.write_bytes(b"half")
        assert not store.path("01A").exists()
        assert part.name.startswith(".")
        assert part.parent == tmp_path  # a rename across file systems would be a copy

    assert [path.name for path in tmp_path.iterdir()] == ["01A.mp4"]


def test_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VideoStore(tmp_path, "me")
    seen: list[list[str]] = []
    fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with store.writing("01A") as part:
        part.write_bytes(b"whole")

    assert seen == [[".01A.me.mp4.part"], ["01A.mp4"]]  # the file, then the directory


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    def fail_half_way() -> None:
        with store.writing("01A") as part:
            part.write_bytes(b"half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail_half_way()

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_never_written_is_a_storage_error(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    with (
        pytest.raises(StorageError, match=r"cannot publish .*01A\.mp4: No such file"),
        store.writing("01A"),
    ):
        pass


def test_sweeping_spares_finished_videos_and_what_others_write(tmp_path: Path) -> None:
    def make(name: str, age: float) -> Path:
        path = tmp_path / name
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    own = make(".01A.me.mp4.part", age=0)
    abandoned = make(".01B.gone.mp4.part", age=7200)
    spared = [
        make(".01C.other.mp4.part", age=0),
        make(".01D.not.me.mp4.part", age=0),
        make("01E.mp4", age=7200),
        make(".nfs0001", age=7200),
    ]

    assert set(VideoStore(tmp_path, "me").sweep(max_age=3600)) == {own, abandoned}
    assert set(tmp_path.iterdir()) == set(spared)


def test_the_writability_check_leaves_nothing_behind(tmp_path: Path) -> None:
    VideoStore(tmp_path, "me").check_writable(IdFactory())

    assert list(tmp_path.iterdir()) == []
