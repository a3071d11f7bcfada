"""What our pipeline gains over diffusers' own: time of each stage, memory, and what it changes.

Both run in one go, each in a process of its own so that its peak of memory is its own, on the
same random weights, prompts and seed. With a GPU they are the full-size model, made there; else a
clone of a size that a CPU can do, which diffusers loads as it would be published and we load as it
was prepared.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import WanPipeline

from t2v_server.checkpoint.manifest import is_prepared
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.acceleration import choose_attention, compile_blocks
from t2v_server.engine.checkpoint import load
from t2v_server.engine.encoding import choose_encoder, encode_clip, encode_mp4
from t2v_server.engine.plot import draw
from t2v_server.engine.prepare import prepare
from t2v_server.engine.text import EmbeddingCache
from t2v_server.engine.tiny import CLONES, TINY_SIZES, build_clone
from t2v_server.engine.wan import Choices, Guidance, WanVideo
from t2v_server.jobs.record import Parameters, Progress, Stage
from t2v_server.profiles import (
    FAST_WAN_SCHEDULE,
    GIB,
    P80G,
    T4,
    TINY,
    Compile,
    Profile,
    Residency,
    VideoParameters,
)

STOCK, OURS, FEW_STEP, CAPPED = "stock", "ours", "few-step", "t4"
_PREPARE = "prepare"  # not measured: what those need that load from files
_PUBLISHED = "published"
_REQUESTS = 2  # of the second one the negative prompt was seen before
_MID_VIDEO = VideoParameters(256, 192, 33, 4, 5.0, 5.0, 24)
_TINY_VIDEO = VideoParameters(64, 64, 9, 2, 5.0, 5.0, 24)
_STEPS = 50  # that the goals speak of
_T4_BYTES = int(14.7 * GIB)
_HOST_BYTES = 8 * GIB


@dataclass
class Measured:
    """One variant. Seconds are of the second request, ``cpu_seconds`` of this process alone."""

    name: str
    video: dict[str, Any]
    load_seconds: float
    loaded_host_bytes: int
    seconds: float
    cpu_seconds: float
    stages: dict[str, float]
    step_seconds: list[float]
    host_peak_bytes: int
    gpu_peak_bytes: int
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """The median step, without the first."""
        ordered = sorted(self.step_seconds[1:] or self.step_seconds)
        return ordered[len(ordered) // 2] if ordered else 0.0


def bench(directory: Path, clone: str, steps: int | None, variants: Sequence[str]) -> int:
    """Measure, print, and write ``bench.json`` and ``bench.svg``; returns the exit status.

    Raises:
        OSError: the directory cannot be written.
    """
    gpu = torch.cuda.is_available()
    clone = ("full" if gpu else "mid") if clone == "auto" else clone
    directory.mkdir(parents=True, exist_ok=True)
    measured, failed = dict[str, Measured](), dict[str, str]()
    for name in variants or ([STOCK, OURS, FEW_STEP, CAPPED] if gpu else [STOCK, OURS, FEW_STEP]):
        print(f"{name}: the {clone} clone on {'the GPU' if gpu else 'the CPU'} …", flush=True)
        try:
            if _from_files(name, gpu=gpu) and not is_prepared(
                directory / clone / _profile(name).name
            ):
                _in_a_process(_PREPARE, clone, None, directory / clone, name)
            measured[name] = _in_a_process(name, clone, steps, directory / clone)
        except RuntimeError as error:
            failed[name] = str(error)
            print(f"  failed: {error}")
    print("differences from diffusers, on the tiny clone …", flush=True)
    changes = differences()
    goals = _goals(measured, failed, gpu=gpu, full=clone == "full")
    report = {
        "clone": clone,
        "machine": _machine(),
        "measured": {name: asdict(one) for name, one in measured.items()},
        "failed": failed,
        "ratios": _ratios(measured),
        "differences": changes,
        "goals": goals,
    }
    (directory / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    (directory / "bench.svg").write_text(_plot(measured, clone))
    print(_text(measured, report))
    print(f"{directory / 'bench.json'}, {directory / 'bench.svg'}")
    return 1 if failed or any(goal["met"] is False for goal in goals) else 0


def _from_files(name: str, *, gpu: bool) -> bool:
    """Whether the clone is loaded from files: made on a GPU, it would fill a disk for nothing."""
    return name == CAPPED or not gpu


def _profile(name: str) -> Profile:
    """What the clone is prepared for. In float32 where a CPU computes."""
    if name == CAPPED:
        return T4
    return P80G if torch.cuda.is_available() else TINY


def _in_a_process(
    name: str, clone: str, steps: int | None, models: Path, variant: str = ""
) -> Measured:
    """Measure in a child; ``models`` is where the clone's files are, or are to be."""
    with tempfile.TemporaryDirectory(prefix="t2v-bench-") as scratch:
        out = Path(scratch) / "measured.json"
        command = [
            sys.executable, "-m", "t2v_server", "bench",
            "--measure", f"{name}:{variant}" if variant else name,
            "--clone", clone, "--output", str(out), "--model", str(models),
            *([] if steps is None else ["--steps", str(steps)]),
        ]  # fmt: skip
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
        return Measured(**json.loads(out.read_text()))


def measure(name: str, clone: str, steps: int | None, out: Path, models: Path) -> int:
    """Be one variant's process: write what was measured to ``out``."""
    if name.startswith(_PREPARE):
        return _prepare(clone, out, models, name.partition(":")[2])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    video = {"tiny": _TINY_VIDEO, "mid": _MID_VIDEO}.get(clone, P80G.defaults)
    if name == FEW_STEP:
        video = replace(video, num_inference_steps=len(FAST_WAN_SCHEDULE), guidance_scale=1.0)
    elif name == CAPPED:
        video = T4.defaults
    if steps is not None and name != FEW_STEP:
        video = replace(video, num_inference_steps=steps)
    if name == CAPPED and device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, _T4_BYTES / total))
    started = time.perf_counter()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if not _from_files(name, gpu=device == "cuda"):
        pipe: Any = build_clone(CLONES[clone], device, dtype)
    elif name == STOCK:
        pipe = cast(Any, WanPipeline).from_pretrained(models / _PUBLISHED, dtype=dtype)
    else:
        dtype = torch.float16 if name == CAPPED else dtype
        pipe = load(models / _profile(name).name, "cpu", _profile(name))[0]
    pipe.set_progress_bar_config(disable=True)
    load_seconds, loaded = time.perf_counter() - started, _host_peak()
    notes = dict[str, str]()
    run = _stock(pipe) if name == STOCK else _ours(pipe, name, device, dtype, notes)
    measured = Measured(name, asdict(video), load_seconds, loaded, 0, 0, {}, [], 0, 0, notes)
    for index in range(_REQUESTS):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        prompt = Parameters(f"a dog running, take {index}", "blurred, still", 4, video)
        with tempfile.TemporaryDirectory(prefix="t2v-bench-") as scratch:
            wall, processor = time.perf_counter(), time.process_time()
            measured.stages, measured.step_seconds = run(prompt, Path(scratch) / "clip.mp4")
            measured.seconds = time.perf_counter() - wall
            measured.cpu_seconds = time.process_time() - processor
    measured.host_peak_bytes = _host_peak()
    if device == "cuda":
        measured.gpu_peak_bytes = torch.cuda.max_memory_reserved()
    out.write_text(json.dumps(asdict(measured)))
    return 0


def _prepare(clone: str, out: Path, models: Path, variant: str) -> int:
    """Write the clone as it would be published, and prepare it as a site does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    published = models / _PUBLISHED
    if not (published / "model_index.json").is_file():
        with tempfile.TemporaryDirectory(prefix="t2v-bench-", dir=models.parent) as part:
            cast(Any, build_clone(CLONES[clone], device, dtype)).save_pretrained(part)
            models.mkdir(exist_ok=True)
            Path(part).rename(published)
            Path(part).mkdir()
    profile = _profile(variant)
    wanted = Wanted(str(published), profile, models / profile.name, "directory", None, None)
    prepare(wanted, lambda _line: None)
    out.write_text(json.dumps(asdict(Measured(_PREPARE, {}, 0, 0, 0, 0, {}, [], 0, 0))))
    return 0


Run = Callable[[Parameters, Path], tuple[dict[str, float], list[float]]]


def _stock(pipe: Any) -> Run:  # noqa: ANN401 - a diffusers pipeline
    """``WanPipeline`` as its documentation shows it, and its frames to an mp4 after it."""

    def run(parameters: Parameters, path: Path) -> tuple[dict[str, float], list[float]]:
        video = parameters.video
        spent = _Spent()
        with (
            spent.within(pipe, "_get_t5_prompt_embeds", Stage.PROMPT),
            spent.within(pipe.vae, "decode", Stage.DECODING),
        ):
            marks = list[float]()

            def step_done(
                _pipe: object, _step: int, _time: object, tensors: dict[str, Any]
            ) -> dict[str, Any]:
                _wait()
                marks.append(time.perf_counter())
                return tensors

            before = time.perf_counter()
            frames = pipe(
                prompt=parameters.prompt, negative_prompt=parameters.negative_prompt,
                width=video.width, height=video.height, num_frames=video.num_frames,
                num_inference_steps=video.num_inference_steps,
                guidance_scale=video.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(parameters.seed),
                callback_on_step_end=step_done,
            ).frames  # fmt: skip
            begun = before + spent.seconds[Stage.PROMPT.value]
            stages = spent.seconds | {Stage.DENOISING.value: marks[-1] - begun}
        decoded = time.perf_counter()
        whole = np.asarray(frames, dtype=np.float32)[0]
        encode_mp4((whole * 255).round().astype(np.uint8), path, video.fps)
        stages["mux"] = time.perf_counter() - decoded
        return stages, list(np.diff([begun, *marks]))

    return run


def _ours(
    pipe: Any,  # noqa: ANN401 - a diffusers pipeline
    name: str,
    device: str,
    dtype: torch.dtype,
    notes: dict[str, str],
) -> Run:
    profile: Profile = T4 if name == CAPPED else P80G
    wan = WanVideo(
        pipe,
        device,
        residency=Residency.STAGED if name == CAPPED else Residency.RESIDENT,
        schedule=FAST_WAN_SCHEDULE if name == FEW_STEP else None,
        embeddings=EmbeddingCache("clone", 64 << 20),
    )
    with wan.transformer_at_hand() as transformer:
        tokens = profile.defaults.tokens
        notes["attention"] = choose_attention(transformer, tokens, device, dtype)
        wanted = profile.compile if device == "cuda" else Compile.NO
        notes["compiled"] = compile_blocks(transformer, wanted, device, dtype)
    encoder = notes["encoder"] = choose_encoder("auto")

    def run(parameters: Parameters, path: Path) -> tuple[dict[str, float], list[float]]:
        marks = list[float]()

        def watch(progress: Progress) -> None:
            if progress.stage is Stage.DENOISING:
                marks.append(time.perf_counter())

        video = parameters.video
        ended = [0.0]

        def told() -> Any:  # noqa: ANN401 - the frames
            yield from wan.stream(parameters, watch)
            ended[0] = time.perf_counter()

        encode_clip(told(), video.num_frames, path, None, video.fps, encoder)
        stages = {stage.value: seconds for stage, seconds in wan.last.seconds.items()}
        stages["mux"] = time.perf_counter() - ended[0]
        begun = marks[-1] - stages[Stage.DENOISING.value]
        return stages, list(np.diff([begun, *marks]))

    return run


class _Spent:
    """Seconds inside methods of somebody else's object."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()

    def within(self, owner: object, method: str, stage: Stage) -> Any:  # noqa: ANN401
        from unittest import mock

        plain = getattr(owner, method)

        def timed(*arguments: object, **named: object) -> object:
            _wait()
            started = time.perf_counter()
            made = plain(*arguments, **named)
            _wait()
            spent = time.perf_counter() - started
            self.seconds[stage.value] = self.seconds.get(stage.value, 0.0) + spent
            return made

        return mock.patch.object(owner, method, timed)


_NONE = Choices(
    plain_timesteps=False, prepared_text=False, host_scheduler=False, guidance=Guidance.TWO
)
_ONE_BY_ONE = {
    "our loop, nothing else": _NONE,
    "text projected once": replace(_NONE, prepared_text=True),
    "UniPC on the host": replace(_NONE, host_scheduler=True),
    "one timestep for all tokens": replace(_NONE, plain_timesteps=True),
    "both prompts in one pass": replace(_NONE, guidance=Guidance.BATCHED),
    "all of it": Choices(guidance=Guidance.BATCHED),
}


def differences() -> dict[str, dict[str, float]]:
    """What each exact optimisation does to latents and frames, against diffusers' own."""
    parameters = Parameters("a dog", "blurred", 4, replace(_TINY_VIDEO, num_inference_steps=10))
    video = parameters.video

    def stock(kind: str) -> Any:  # noqa: ANN401 - latents or frames
        pipe = cast(Any, build_clone(TINY_SIZES))
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            prompt=parameters.prompt, negative_prompt=parameters.negative_prompt,
            width=video.width, height=video.height, num_frames=video.num_frames,
            num_inference_steps=video.num_inference_steps, guidance_scale=video.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(parameters.seed), output_type=kind,
        ).frames  # fmt: skip

    latents = stock("latent")
    frames = (np.asarray(stock("np"))[0] * 255).round()
    found = {}
    for name, choices in _ONE_BY_ONE.items():
        wan = WanVideo(build_clone(TINY_SIZES), "cpu", choices=choices)
        ours = wan.denoise(parameters, lambda _progress: None)
        made = np.concatenate(list(wan.stream(parameters, lambda _progress: None)))
        found[name] = {
            "latents": float((ours - latents).abs().max()),
            "frames": float(np.abs(made - frames).max()),
        }
    return found


def _ratios(measured: Mapping[str, Measured]) -> dict[str, float]:
    if STOCK not in measured or OURS not in measured:
        return {}
    stock, ours = measured[STOCK], measured[OURS]
    ratios = {
        "seconds": stock.seconds / ours.seconds,
        "cpu_seconds": stock.cpu_seconds / ours.cpu_seconds,
        "step": stock.step / ours.step,
        "host_peak": stock.host_peak_bytes / ours.host_peak_bytes,
        "host_above_loaded": (stock.host_peak_bytes - stock.loaded_host_bytes)
        / max(1, ours.host_peak_bytes - ours.loaded_host_bytes),
    }
    for stage in (*(stage.value for stage in Stage), "mux"):
        if stage in stock.stages and ours.stages.get(stage, 0) > 0:
            ratios[stage] = stock.stages[stage] / ours.stages[stage]
    if ours.gpu_peak_bytes:
        ratios["gpu_peak"] = stock.gpu_peak_bytes / ours.gpu_peak_bytes
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def _goals(
    measured: Mapping[str, Measured], failed: Mapping[str, str], *, gpu: bool, full: bool
) -> list[dict[str, Any]]:
    """What this project wants of a GPU, and whether it is so; ``met`` None: not measured."""

    def goal(text: str, name: str, see: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
        if not gpu or not full or (name not in measured and name not in failed):
            return {"goal": text, "met": None, "found": "not measured: no full-size run on a GPU"}
        if name in failed:
            return {"goal": text, "met": False, "found": failed[name]}
        met, found = see()
        return {"goal": text, "met": met, "found": found}

    def faster() -> tuple[bool, str]:
        stock, ours = (_of_all_steps(measured[name]) for name in (STOCK, OURS))
        ratio = stock / ours
        return ratio >= 1.5, f"{ratio:.2f} times, {stock:.1f} s and {ours:.1f} s"

    def soon() -> tuple[bool, str]:
        seconds = measured[FEW_STEP].seconds
        return seconds < 10, f"{seconds:.1f} s"

    def fits() -> tuple[bool, str]:
        one = measured[CAPPED]
        met = one.gpu_peak_bytes <= _T4_BYTES and one.host_peak_bytes <= _HOST_BYTES
        return met, (
            f"{one.gpu_peak_bytes / GIB:.1f} GiB on the GPU, "
            f"{one.host_peak_bytes / GIB:.1f} GiB on the host"
        )

    return [
        goal("1280x704x121, 50 steps: 1.5 times faster than diffusers, exact", OURS, faster),
        goal("few-step, text to mp4: under 10 s on an H200", FEW_STEP, soon),
        goal("t4, 832x480x49: within 14.7 GiB of GPU and 8 GiB of host memory", CAPPED, fits),
    ]


def _of_all_steps(one: Measured) -> float:
    """Seconds of a request of 50 steps, from one of fewer."""
    return one.seconds + one.step * (_STEPS - int(one.video["num_inference_steps"]))


def _text(measured: Mapping[str, Measured], report: Mapping[str, Any]) -> str:
    lines = ["", f"{'':16}{'text':>8}{'a step':>8}{'denoise':>9}{'decode':>8}{'mux':>7}"
             f"{'all':>8}{'cpu':>8}  host MiB  GPU MiB"]  # fmt: skip
    for name, one in measured.items():
        stage = one.stages
        lines.append(
            f"{name:16}{stage.get('encoding_prompt', 0):8.2f}{one.step:8.2f}"
            f"{stage.get('denoising', 0):9.2f}{stage.get('decoding', 0):8.2f}"
            f"{stage.get('mux', 0):7.2f}{one.seconds:8.2f}{one.cpu_seconds:8.2f}"
            f"{one.host_peak_bytes / (1 << 20):10.0f}{one.gpu_peak_bytes / (1 << 20):9.0f}"
        )
    if report["ratios"]:
        lines += ["", "stock / ours: " + ", ".join(
            f"{name} {ratio:.2f}" for name, ratio in report["ratios"].items()
        )]  # fmt: skip
    lines += ["", "largest difference from diffusers: of latents, of frames (0 … 255)"]
    lines += [
        f"  {name:28}{one['latents']:10.1e}{one['frames']:5.0f}"
        for name, one in report["differences"].items()
    ]
    lines.append("")
    for one in report["goals"]:
        word = {True: "met", False: "MISSED", None: "open"}[one["met"]]
        lines.append(f"{word:7}{one['goal']}: {one['found']}")
    return "\n".join([*lines, ""])


def _plot(measured: Mapping[str, Measured], clone: str) -> str:
    shown = ("encoding_prompt", "denoising", "decoding", "mux")
    return draw(
        f"Seconds of a request, {clone} clone",
        {name: {stage: one.stages.get(stage, 0.0) for stage in shown}
         for name, one in measured.items()},
        {name: (one.host_peak_bytes, one.gpu_peak_bytes) for name, one in measured.items()},
    )  # fmt: skip


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[0], 1),
    }


def _host_peak() -> int:
    """The most memory that this process had in use."""
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
