"""``t2v-server doctor``: one line for each thing that a server needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from t2v_server import __version__
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import read_manifest, verify
from t2v_server.config import ConfigError, Settings, unknown_variables
from t2v_server.gpu import smallest_gpu_bytes
from t2v_server.jobs.ids import IdFactory
from t2v_server.jobs.open import SQLITE_FILE, open_store
from t2v_server.jobs.store import StoreUnavailable
from t2v_server.profiles import GIB, TINY_MODEL
from t2v_server.storage.videos import StorageError, VideoStore

_IMPORT_SECONDS = 120
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "9p"}


EXIT_SETTINGS = 2


class _Unfit(Exception):
    """What is wrong and what to do."""


def examine(environ: Mapping[str, str]) -> int:
    """Print what was found; returns 0 if a server would work, else 1."""
    print(f"t2v-server {__version__}, Python {sys.version.split()[0]}")
    for name in unknown_variables(environ):
        print(f"  warning  {name} is not a setting of this server and has no effect")
    try:
        settings = Settings.from_environ(environ)
    except ConfigError as error:
        print(f"  WRONG    settings: {error}")
        return EXIT_SETTINGS
    print("  ok       settings")
    wrong = 0
    for title, look in _looks(settings):
        try:
            print(f"  ok       {title}: {look()}")
        except (
            _Unfit, ConfigError, StorageError, StoreUnavailable, OSError, RuntimeError,
            subprocess.TimeoutExpired,
        ) as error:  # fmt: skip
            wrong += 1
            print(f"  WRONG    {title}: {error}")
    return 1 if wrong else 0


def _looks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "videos", lambda: _videos(settings)
    yield "state directory", lambda: _state(settings)
    yield "job store", lambda: _store(settings)
    if settings.clients.authenticated:
        yield "clients", lambda: _clients(settings)
    yield "ffmpeg", _ffmpeg
    yield "profile", lambda: _profile(settings)
    if settings.engines:
        yield "PyTorch", lambda: _torch(settings)
        yield "model", lambda: _model(settings)


def _videos(settings: Settings) -> str:
    videos = VideoStore(settings.output_dir, settings.instance)
    videos.check_writable(IdFactory())
    free = videos.free_bytes()
    needed = settings.video.most_bytes + settings.retention.min_free_bytes
    if free < needed:
        raise _Unfit(
            f"{settings.output_dir} has {free} bytes free and one video may need {needed}: make "
            "room, or lower T2V_MIN_FREE_BYTES"
        )
    return f"{settings.output_dir}, {free / 1e9:.1f} GB free"


def _state(settings: Settings) -> str:
    if not settings.state_dir.is_dir():
        if not os.access(settings.state_dir.parent, os.W_OK):
            raise _Unfit(
                f"{settings.state_dir} does not exist, and this account cannot make it: make it "
                "and let this account write there"
            )
        return f"{settings.state_dir} will be made"
    if not os.access(settings.state_dir, os.W_OK):
        raise _Unfit(f"{settings.state_dir} cannot be written: let this account write there")
    kind = _file_system(str(settings.state_dir))
    if settings.jobs.redis is None and kind in _NETWORK_FILE_SYSTEMS:
        raise _Unfit(
            f"{settings.state_dir} is on {kind}, where SQLite loses data: set T2V_STATE_DIR to a "
            "local directory"
        )
    return f"{settings.state_dir} ({kind or 'unknown file system'})"


def _file_system(path: str) -> str:
    """The type of the file system that holds ``path``, by the longest mount point."""
    path = str(Path(path).resolve())
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def _store(settings: Settings) -> str:
    if settings.jobs.redis is None and not (settings.state_dir / SQLITE_FILE).exists():
        return "SQLite, no jobs yet"
    store = open_store(settings)
    try:
        counts = store.counts()
        redis = settings.jobs.redis
        if redis is None:
            kind = "SQLite"
        else:
            from t2v_server.jobs.redis_store import RedisStore

            assert isinstance(store, RedisStore)
            if not store.appends():
                raise _Unfit(
                    f"{redis.url} keeps no append-only file, and would forget jobs when it is "
                    "restarted: set appendonly yes"
                )
            kind = redis.url
        return f"{kind}, {counts.queued} jobs wait, {counts.in_progress} are worked on"
    finally:
        store.close()


def _clients(settings: Settings) -> str:
    from t2v_server.api.auth import Authenticator

    Authenticator(settings.clients)
    return "the keys can be read"


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_version())


def _profile(settings: Settings) -> str:
    profile = settings.engine.profile
    expected, video = profile.expected, settings.video
    gpu = smallest_gpu_bytes() if expected.gpu_bytes and settings.engines else None
    if gpu is not None and settings.engine.device != "cpu" and gpu < expected.gpu_bytes:
        raise _Unfit(
            f"{profile.name} takes {expected.gpu_bytes / GIB:.1f} GiB of GPU memory, and this GPU "
            f"has {gpu / GIB:.1f}: set T2V_PROFILE to a smaller one, or to auto"
        )
    host = _host_bytes()
    if settings.engines and host is not None and host < expected.host_bytes * settings.engines:
        raise _Unfit(
            f"{profile.name} takes {expected.host_bytes / GIB:.0f} GiB of memory for each engine, "
            f"and there are {host / GIB:.1f}: raise the limit, or set T2V_PROFILE to a smaller one"
        )
    steps = "step" if video.num_inference_steps == 1 else "steps"
    return (
        f"{profile.name}, {profile.quality} quality: {video.width}x{video.height}, "
        f"{video.num_frames} frames, {video.num_inference_steps} {steps}; of its defaults it "
        f"expects {expected.seconds:g} s ({expected.source})"
    )


def _host_bytes() -> int | None:
    """What this process may use: the container's limit, or the host's memory."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _torch(settings: Settings) -> str:
    # In a process of its own: importing it may crash.
    code = (
        "import torch; print(torch.__version__, 'with', torch.cuda.get_device_name(0) "
        "if torch.cuda.is_available() else 'no GPU')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False,
    )  # fmt: skip
    said = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode != 0 or not said:
        raise _Unfit(f"cannot be imported: {said[-1] if said else done.returncode}")
    if settings.engine.device == "cuda" and said[-1].endswith("no GPU"):
        raise _Unfit(f"{said[-1]}, and T2V_DEVICE is cuda: install a driver, or set it to cpu")
    return said[-1]


def _model(settings: Settings) -> str:
    model = settings.engine.model
    if model == TINY_MODEL:
        return "tiny, which is built in; its videos are noise"
    directory = Path(model)
    if model.startswith(("/", ".")) and not (directory / "model_index.json").is_file():
        try:
            manifest = read_manifest(directory)
            verify(directory, manifest.files, quick=True)
        except CheckpointError as error:
            raise _Unfit(str(error)) from error
        return f"{model}, prepared for {manifest.profile} (its sizes; 'model check' does more)"
    return f"{model} (not loaded here: 'model check' does that)"
