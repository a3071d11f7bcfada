"""Which videos have had their time."""

from __future__ import annotations

import time

from t2v_server.storage.videos import VideoStore


def expired_names(store: VideoStore, max_age: float | None) -> list[str]:
    """Ids of videos whose file is older than ``max_age`` seconds, whoever knows of them."""
    if max_age is None:
        return []
    before = time.time() - max_age
    names = []
    for video in store.all():
        try:
            if video.path.stat().st_mtime < before:
                names.append(video.path.stem)
        except FileNotFoundError:
            continue
    return names


def surplus_names(store: VideoStore, max_bytes: int | None) -> list[str]:
    """Ids of the oldest videos, as many as must go so that the others are within ``max_bytes``."""
    if max_bytes is None:
        return []
    videos = store.all()
    total = sum(video.num_bytes for video in videos)
    names = []
    for video in videos:
        if total <= max_bytes:
            break
        names.append(video.path.stem)
        total -= video.num_bytes
    return names
