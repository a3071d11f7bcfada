"""``t2v-server generate`` and ``model``: one video, here or by a server."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tqdm import tqdm

from t2v_server.api.errors import ApiError
from t2v_server.api.schemas import RequestRules, Wanted
from t2v_server.client import Client, ServerError
from t2v_server.config import ConfigError, Settings
from t2v_server.jobs.record import Progress
from t2v_server.profiles import TINY_MODEL

if TYPE_CHECKING:
    from t2v_server.engine.generator import VideoGenerator

_PARAMETERS = (
    "prompt", "negative_prompt", "size", "seconds", "num_frames", "fps", "num_inference_steps",
    "guidance_scale", "flow_shift", "seed",
)  # fmt: skip
EXIT_FAILED = 1

Report = Callable[[int, str], None]


def generate(options: argparse.Namespace, settings: Settings | None) -> int:
    """Make one video at ``options.output``; ``settings`` None: by ``options.server``."""
    output = Path(options.output)
    if output.is_dir():
        return _fail(f"{output} is a directory: name a file")
    if output.exists() and not options.force:
        return _fail(f"{output} exists: name another file, or use --force")
    if not output.absolute().parent.is_dir():
        return _fail(f"the directory {output.absolute().parent} does not exist: make it first")
    given = {
        name: str(value)
        for name in _PARAMETERS
        if (value := getattr(options, name)) is not None and value != ""
    }
    part = output.with_name(f".t2v-{os.getpid()}.part")
    failures: tuple[type[Exception], ...] = (
        ApiError,
        ServerError,
        ConfigError,
        OSError,
        *_engine_errors(settings),
    )
    _interrupt_when_told_to_stop()
    try:
        part.touch()  # before minutes of work, not after them
        with _progress_bar() as report:
            if settings is None:
                seed = _by_server(options, given, part, report)
            else:
                seed = _here(settings, given, part, report)
        part.replace(output)
    except failures as error:
        return _fail(str(error))
    finally:
        part.unlink(missing_ok=True)
    print(f"{output} (seed {seed})")
    return 0


def prepare(settings: Settings, directory: str) -> int:
    """Write the model of the settings to ``directory``."""
    target = Path(directory)
    if target.exists() and not target.is_dir():
        return _fail(f"{target} is a file: name a directory")
    if target.exists() and any(target.iterdir()):
        return _fail(f"{target} is not empty: name another directory")
    generator = _load(settings)
    save = getattr(generator.pipeline, "save_pretrained", None)
    assert save is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a server must not load what an interrupted run left.
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save(part)
        part.chmod(0o755)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{target}: set T2V_MODEL to it")
    return 0


def check(settings: Settings) -> int:
    """Load the model and make its warm-up video."""
    from t2v_server.engine.encoding import encode_clip

    started = time.monotonic()
    generator = _load(settings)
    loaded = time.monotonic()
    generator.begin_memory_peak()
    with tempfile.TemporaryDirectory(prefix="t2v-check-") as directory:
        path = Path(directory) / "check.mp4"
        video = settings.video
        encode_clip(generator.warm_up(video), video.num_frames, path, None, video.fps)
        size = path.stat().st_size
    video = settings.video
    print(
        f"{settings.engine.model} works on {generator.device} in {generator.dtype}: loaded in "
        f"{loaded - started:.1f} s, {video.width}x{video.height}, {video.num_frames} frames in "
        f"{time.monotonic() - loaded:.1f} s, {size} bytes, peak memory "
        f"{generator.peak_memory_bytes() / 1e9:.2f} GB"
    )
    return 0


def _here(settings: Settings, given: dict[str, str], part: Path, report: Report) -> int:
    from t2v_server.engine.encoding import choose_encoder, encode_clip

    wanted = _rules(settings, given)
    generator = _load(settings)

    def watch(progress: Progress) -> None:
        report(progress.percent, f"{progress.stage.value} {progress.done}/{progress.total}")

    video = wanted.parameters.video
    frames = generator.stream(wanted.parameters, watch)
    encoder = choose_encoder(settings.engine.encoder)
    encode_clip(frames, video.num_frames, part, None, video.fps, encoder)
    report(100, "done")
    return wanted.parameters.seed


def _rules(settings: Settings, given: dict[str, str]) -> Wanted:
    rules = RequestRules(
        settings.engine.model,
        settings.video,
        settings.limits,
        reuse=False,
        images=settings.engine.profile.images,
    )
    return rules.read(given, typed=False)


def _by_server(
    options: argparse.Namespace, given: dict[str, str], part: Path, report: Report
) -> int:
    token = os.environ.get("T2V_TOKEN", "")
    if options.token_file:
        try:
            token = Path(options.token_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {options.token_file} cannot be read") from error
    client = Client(options.server, token.strip())
    job = client.create(given)
    try:
        while job.status not in ("completed", "failed"):
            report(job.progress, job.stage)
            time.sleep(0.3)
            job = client.get(job.id)
    except BaseException:
        with suppress(ServerError):
            client.cancel(job.id)
        raise
    if job.status == "failed":
        raise ServerError(job.error)
    client.download(job.id, part)
    report(100, "done")
    return job.seed


def _load(settings: Settings) -> VideoGenerator:
    from t2v_server.engine.generator import load_for

    engine = settings.engine
    try:
        return load_for(engine)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"T2V_MODEL={engine.model!r} cannot be loaded: {lines[0] if lines else error!r}: set "
            f"it to {TINY_MODEL}, a directory that 'model prepare' wrote, or a hub id."
        ) from error


def _engine_errors(settings: Settings | None) -> tuple[type[Exception], ...]:
    if settings is None:
        return ()
    from t2v_server.engine import errors

    return (errors.GenerationError, errors.EngineLostError, errors.EncodingError)


def _interrupt_when_told_to_stop() -> None:
    """SIGTERM and SIGHUP end as Ctrl-C does: nothing is left here, nor at the server."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def _progress_bar() -> Iterator[Report]:
    with tqdm(total=100, unit="%", bar_format="{desc:<24.24} {bar:30} {percentage:3.0f}%") as bar:

        def report(percent: int, stage: str) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(percent - bar.n)
            bar.refresh()

        yield report


def _fail(sentence: str) -> int:
    print(f"t2v-server: {sentence}", file=sys.stderr)
    return EXIT_FAILED
