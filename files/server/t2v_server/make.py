"""``t2v-server generate`` and ``model``: one video, here or by a server."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tqdm import tqdm

from t2v_server.api.errors import ApiError
from t2v_server.api.schemas import RequestRules, Wanted
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.client import Client, ServerError
from t2v_server.config import ConfigError, Settings
from t2v_server.jobs.record import Progress
from t2v_server.profiles import PROFILES, TINY_MODEL

if TYPE_CHECKING:
    from t2v_server.engine.generator import VideoGenerator

_PARAMETERS = (
    "prompt", "negative_prompt", "size", "seconds", "num_frames", "fps", "num_inference_steps",
    "guidance_scale", "flow_shift", "seed",
)  # fmt: skip
EXIT_FAILED = 1

# Of the clip of ``model check``: proves the networks, not the memory.
_SMALL, _SMALL_FRAMES = 64, 9

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
        CheckpointError,
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


def prepare(options: argparse.Namespace) -> int:
    """Prepare a model for a profile; returns the exit status."""
    from t2v_server.checkpoint.manifest import read_manifest
    from t2v_server.checkpoint.wanted import Wanted, is_there

    started = time.monotonic()
    target = Path(options.output).absolute()
    try:
        wanted = Wanted(
            options.source, PROFILES[options.profile], target, options.kind, options.revision,
            _token(options.token_file),
        )  # fmt: skip
        changed = not is_there(wanted)
        if options.dry_run:
            if options.json:
                _say({"directory": str(target), "changed": changed})
            else:
                print(f"{target} " + ("would be prepared" if changed else "is there"))
            return 0
        if changed:
            from t2v_server.engine import prepare as engine  # imports PyTorch: seconds

            _interrupt_when_told_to_stop()
            done = engine.prepare(wanted, lambda line: print(line, file=sys.stderr, flush=True))
            changed = done.changed
        manifest = read_manifest(target)
    except (CheckpointError, ConfigError) as error:
        return _refuse(options, str(error))
    except OSError as error:
        return _refuse(options, f"{error}: what was finished is kept, run the same command again")
    if options.json:
        _say(
            {
                "directory": str(target),
                "changed": changed,
                "profile": manifest.profile,
                "source": manifest.origin.name,
                "kind": manifest.origin.kind,
                "revision": manifest.origin.revision,
                "bytes": manifest.bytes,
                "networks": {name: vars(one) for name, one in manifest.networks.items()},
                "seconds": round(time.monotonic() - started, 1),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    else:
        how = f"prepared in {time.monotonic() - started:.0f} s" if changed else "was there"
        print(f"{target}: {how}, {manifest.bytes / 1e9:.2f} GB; set T2V_MODEL to it")
    return 0


def check(options: argparse.Namespace) -> int:
    """See whether a model is whole, loads, and makes a clip; returns the exit status."""
    from t2v_server.checkpoint.manifest import is_prepared, read_manifest, verify

    model = options.directory or os.environ.get("T2V_MODEL", TINY_MODEL)
    found: dict[str, object] = {"model": model, "ok": True}
    try:
        if options.directory or is_prepared(Path(model)):
            manifest = read_manifest(Path(model))
            found |= {"profile": manifest.profile, "files": len(manifest.files)}
            if options.files:
                verify(Path(model), manifest.files, quick=options.quick)
        if not options.files:  # loading verifies
            settings = Settings.from_environ({**os.environ, "T2V_MODEL": model})
            found |= _try_out(settings, full=options.full)
    except CheckpointError as error:
        return _refuse(options, str(error))
    if options.json:
        _say(found)
    elif options.files and "files" in found:
        print(f"{model} is whole: prepared for {found['profile']}, {found['files']} files")
    else:
        print(
            f"{model} works on {found['device']} in {found['dtype']}: loaded in "
            f"{found['load_seconds']} s, {found['clip']} frames in {found['generation_seconds']} "
            f"s, {found['clip_bytes']} bytes, peak memory {found['peak_memory_bytes']} bytes"
        )
    return 0


def _try_out(settings: Settings, *, full: bool) -> dict[str, object]:
    from t2v_server.engine.encoding import encode_clip

    video = settings.video
    if not full:
        video = replace(video, width=_SMALL, height=_SMALL, num_frames=_SMALL_FRAMES)
    started = time.monotonic()
    generator = _load(settings)
    loaded = time.monotonic()
    generator.begin_memory_peak()
    with tempfile.TemporaryDirectory(prefix="t2v-check-") as directory:
        path = Path(directory) / "check.mp4"
        encode_clip(generator.warm_up(video), video.num_frames, path, None, video.fps)
        size = path.stat().st_size
    return {
        "device": generator.device,
        "dtype": generator.dtype,
        "load_seconds": round(loaded - started, 1),
        "generation_seconds": round(time.monotonic() - loaded, 1),
        "clip": f"{video.width}x{video.height}x{video.num_frames}",
        "clip_bytes": size,
        "peak_memory_bytes": generator.peak_memory_bytes(),
    }


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} cannot be read") from error


def _say(content: dict[str, object]) -> None:
    print(json.dumps(content))


def _refuse(options: argparse.Namespace, sentence: str) -> int:
    if options.json:
        _say({"ok": False, "error": sentence})
    return _fail(sentence)


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
    except CheckpointError:
        raise
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
