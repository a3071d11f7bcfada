"""Names that never collide and files that are never half there."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from t2v_server.jobs.ids import IdFactory
from t2v_server.storage.space import FreeSpace
from t2v_server.storage.videos import DiskFull, Published, StorageError, VideoStore


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


def publish(store: VideoStore, video_id: str, content: bytes = b"whole") -> Published:
    with store.draft(video_id) as draft:
        draft.video.write_bytes(content)
        draft.thumbnail.write_bytes(b"picture")
        return store.publish(video_id, draft, {"seed": 1})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_name_appears_only_with_the_whole_file(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    with store.draft("01A") as draft:
        draft.video.write_bytes(b"half")
        assert not store.path("01A").exists()
        assert draft.video.name.startswith(".")
        assert draft.video.parent == tmp_path  # a rename across file systems would be a copy
        store.publish("01A", draft, {"seed": 1})

    assert names(tmp_path) == ["01A.json", "01A.mp4"]
    assert json.loads(store.metadata("01A").read_text()) == {"seed": 1}


def test_bytes_reach_the_disk_before_the_name_and_the_video_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VideoStore(tmp_path, "me")
    seen: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        synced = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen.append((synced, [name for name in names(tmp_path) if not name.startswith(".")]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    publish(store, "01A")

    assert seen == [
        (".01A.me.json.part", []),
        (".01A.me.jpg.part", ["01A.json"]),
        (".01A.me.mp4.part", ["01A.jpg", "01A.json"]),
        (tmp_path.name, ["01A.jpg", "01A.json", "01A.mp4"]),
    ]


def test_of_two_attempts_the_first_is_kept(tmp_path: Path) -> None:
    first, second = VideoStore(tmp_path, "one"), VideoStore(tmp_path, "two")
    with second.draft("01A") as late:
        late.video.write_bytes(b"second")
        publish(first, "01A", b"first")
        inode = first.path("01A").stat().st_ino

        published = second.publish("01A", late, {"seed": 2})

    assert published.num_bytes == len(b"first")
    assert published.metadata == {"seed": 1}
    assert first.path("01A").read_bytes() == b"first"
    assert first.path("01A").stat().st_ino == inode


def test_many_attempts_at_once_give_one_file(tmp_path: Path) -> None:
    def attempt(number: int) -> int:
        return publish(VideoStore(tmp_path, f"s{number}"), "01A", bytes(100 + number)).num_bytes

    with ThreadPoolExecutor(16) as pool:
        sizes = set(pool.map(attempt, range(64)))

    assert sizes == {VideoStore(tmp_path, "x").path("01A").stat().st_size}
    assert names(tmp_path) == ["01A.jpg", "01A.json", "01A.mp4"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    def fail_half_way() -> None:
        with store.draft("01A") as draft:
            draft.video.write_bytes(b"half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail_half_way()

    assert names(tmp_path) == []


def test_a_file_that_was_never_written_is_a_storage_error(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    with (
        store.draft("01A") as draft,
        pytest.raises(StorageError, match=r"cannot publish .*01A\.mp4: No such file"),
    ):
        store.publish("01A", draft, {})
    assert store.published("01A") is None


def test_a_failed_publication_leaves_no_companions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(DiskFull):
        publish(VideoStore(tmp_path, "me"), "01A")

    assert names(tmp_path) == []


def test_a_file_system_without_links_gets_a_whole_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    assert publish(VideoStore(tmp_path, "me"), "01A").num_bytes == len(b"whole")


def test_a_full_disk_has_a_name_of_its_own(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")

    with (
        pytest.raises(DiskFull, match=f"the volume of {tmp_path} is full"),
        store.full_disk_named(),
    ):
        raise RuntimeError("ffmpeg: av_interleaved_write_frame(): No space left on device")
    with pytest.raises(RuntimeError, match="something else"), store.full_disk_named():
        raise RuntimeError("something else")


def test_deleting_removes_all_that_belongs_to_a_video(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "me")
    publish(store, "01A")
    publish(store, "01B")

    assert store.delete("01A") > len(b"whole")
    assert store.delete("01A") == 0
    assert names(tmp_path) == ["01B.jpg", "01B.json", "01B.mp4"]


def test_sweeping_spares_finished_videos_and_what_others_write(tmp_path: Path) -> None:
    def make(name: str, age: float) -> Path:
        path = tmp_path / name
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    own = make(".01A.me.mp4.part", age=0)
    own_picture = make(".01A.me.jpg.part", age=0)
    abandoned = make(".01B.gone.mp4.part", age=7200)
    spared = [
        make(".01C.other.mp4.part", age=0),
        make(".01D.not.me.mp4.part", age=0),
        make("01E.mp4", age=7200),
        make(".nfs0001", age=7200),
    ]

    store = VideoStore(tmp_path, "me")
    assert set(store.sweep()) == {own, own_picture}
    assert store.sweep_abandoned(max_age=3600) == [abandoned]
    assert set(tmp_path.iterdir()) == set(spared)


def test_free_space_is_asked_by_one_thread_however_many_wait() -> None:
    asked = list[int]()

    def ask() -> int:
        asked.append(1)
        time.sleep(0.1)
        return 7

    free = FreeSpace(ask)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: free(), range(16)))

    assert answers == [7] * 16
    assert len(asked) == 1


def test_a_volume_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2v_server.storage.space._PATIENCE_SECONDS", 0.1)
    thaw = threading.Event()

    def ask() -> int:
        thaw.wait(10)
        return 7

    free = FreeSpace(ask)
    for _ in range(2):
        with pytest.raises(StorageError, match="does not answer"):
            free()
    thaw.set()
    while True:
        try:
            assert free() == 7
            break
        except StorageError:
            continue


def test_the_writability_check_leaves_nothing_behind(tmp_path: Path) -> None:
    VideoStore(tmp_path, "me").check_writable(IdFactory())

    assert list(tmp_path.iterdir()) == []
