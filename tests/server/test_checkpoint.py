"""Prepared checkpoints: what is made of a model, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from clones import save_middle, save_tiny
from diffusers import WanPipeline
from harness import SERVER_ROOT, Server, probe, run_program
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from t2v_server.checkpoint.errors import CheckpointError
from t2v_server.checkpoint.manifest import MANIFEST, read_manifest, work_directory
from t2v_server.checkpoint.wanted import Wanted
from t2v_server.engine.checkpoint import Checkpoint
from t2v_server.engine.generator import load_generator
from t2v_server.engine.networks import CLASSES, DTYPES
from t2v_server.engine.pipeline import TextToVideoPipeline
from t2v_server.engine.prepare import JOURNAL, prepare
from t2v_server.engine.quantised import Int8Linear, Nf4Linear, quantise_int8, quantise_nf4
from t2v_server.jobs.record import Parameters
from t2v_server.profiles import P24G, PROFILES, T4, TINY, Precision, Precisions, Profile

HERE = Path(__file__).parent
PARAMETERS = Parameters("a dog", "blurred", 4, TINY.defaults)

# Of the tiny model's frames, in grey levels: the most that one may be off, and on average.
TOLERANCE = {Precision.INT8: (2, 0.05), Precision.NF4: (8, 1.0)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # on busy cores, small kernels wait for each other


def of_precision(precision: Precision) -> Profile:
    """A profile for a CPU whose networks are kept in ``precision``."""
    kept = Precision.FP32 if precision.quantised else precision
    return replace(T4, precisions=Precisions(precision, precision, kept, kept))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_middle(tmp_path_factory.mktemp("models") / "middle")


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared checkpoint that stays as it is."""
    return prepare(Wanted(str(tiny), T4, tmp_path_factory.mktemp("share") / "wan")).directory


@pytest.fixture
def prepared(whole: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(whole, tmp_path / "wan"))


def frames_of(pipeline: TextToVideoPipeline) -> NDArray[np.int64]:
    """What a pipeline makes, by diffusers' own call."""
    pipeline.set_progress_bar_config(disable=True)
    video = PARAMETERS.video
    made = cast(Any, pipeline)(
        prompt=PARAMETERS.prompt, negative_prompt=PARAMETERS.negative_prompt, width=video.width,
        height=video.height, num_frames=video.num_frames,
        num_inference_steps=video.num_inference_steps, guidance_scale=video.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(PARAMETERS.seed), output_type="np",
    )  # fmt: skip
    return cast(NDArray[np.int64], (np.asarray(made.frames)[0] * 255).round().astype(np.int64))


def stock(source: Path, dtypes: Mapping[str, torch.dtype]) -> TextToVideoPipeline:
    return cast(TextToVideoPipeline, WanPipeline.from_pretrained(source, dtype=dict(dtypes)))


def weights(pipeline: TextToVideoPipeline, name: str) -> dict[str, torch.Tensor]:
    return cast(torch.nn.Module, pipeline.components[name]).state_dict()


@pytest.mark.parametrize("precision", list(Precision))
def test_a_round_trip_changes_no_more_than_the_precision_does(
    precision: Precision, tiny: Path, tmp_path: Path
) -> None:
    done = prepare(Wanted(str(tiny), of_precision(precision), tmp_path / "wan"))
    pipeline = Checkpoint.open(done.directory).pipeline("cpu")
    frames = frames_of(pipeline)

    if precision.quantised:
        off = np.abs(frames - frames_of(stock(tiny, dict.fromkeys(CLASSES, torch.float32))))
        most, mean = TOLERANCE[precision]
        print(f"{precision}: at most {off.max()}, on average {off.mean():.4f} grey levels off")
        assert 0 < off.max() <= most
        assert off.mean() <= mean
    else:
        same = stock(tiny, dict.fromkeys(CLASSES, DTYPES[precision]))
        for name in CLASSES:
            ours, theirs = weights(pipeline, name), weights(same, name)
            assert ours.keys() == theirs.keys()
            for key, weight in theirs.items():
                assert ours[key].dtype == weight.dtype, key
                assert torch.equal(ours[key], weight), key
        assert np.array_equal(frames, frames_of(same))


def test_a_profile_s_own_precisions_are_what_is_written(whole: Path) -> None:
    manifest = read_manifest(whole)
    kept = {name: (one.precision, one.compute) for name, one in manifest.networks.items()}
    # UMT5's activations exceed float16's range, so it computes in float32.
    assert kept == {
        "transformer": ("int8", "fp16"),
        "text_encoder": ("nf4", "fp32"),
        "vae": ("fp16", "fp16"),
    }
    text = load_file(whole / "text_encoder/model.safetensors")
    feed_forward = "encoder.block.0.layer.1.DenseReluDense"
    assert text[f"{feed_forward}.wo.packed"].dtype == torch.uint8
    assert text["shared.weight"].dtype == torch.float16
    video = load_file(whole / "transformer/diffusion_pytorch_model.safetensors")
    assert video["blocks.0.ffn.net.2.weight"].dtype == torch.int8
    assert video["blocks.0.ffn.net.2.scale"].dtype == torch.float32
    assert video["proj_out.weight"].dtype == torch.float16  # shapes every frame
    assert video["blocks.0.scale_shift_table"].dtype == torch.float32  # as diffusers keeps it


def test_the_manifest_says_where_it_comes_from_and_by_what(whole: Path, tiny: Path) -> None:
    manifest = read_manifest(whole)
    assert (manifest.profile, manifest.origin.kind, manifest.origin.name) == (
        "t4", "directory", str(tiny),
    )  # fmt: skip
    assert manifest.libraries["torch"] == torch.__version__
    assert {"diffusers", "transformers", "safetensors", "t2v-server"} <= manifest.libraries.keys()
    read = manifest.origin.files["vae/diffusion_pytorch_model.safetensors"]
    assert read.size == (tiny / "vae/diffusion_pytorch_model.safetensors").stat().st_size
    on_disk = {str(one.relative_to(whole)) for one in whole.rglob("*") if one.is_file()}
    assert on_disk == {*manifest.files, MANIFEST}


def test_int8_and_nf4_are_as_near_as_their_grids_allow() -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 128) * torch.rand(96, 1)
    x = torch.randn(5, 128)

    kept, scale = quantise_int8(weight)
    eight = Int8Linear(kept, scale)
    unpacked = eight.weight * eight.scale.unsqueeze(1)
    assert ((unpacked - weight).abs() <= scale.unsqueeze(1) / 2 + 1e-7).all()
    assert torch.allclose(eight(x), torch.nn.functional.linear(x, unpacked))

    four = Nf4Linear(*quantise_nf4(weight.view(-1)), weight.shape)
    off = (four.unpacked(torch.float32) - weight).view(-1, 64).abs().amax(dim=1)
    assert (off <= 0.1521 * weight.view(-1, 64).abs().amax(dim=1)).all()  # half the widest gap
    # What is on the grid stays: the same weight, packed again, gives the same bytes.
    again, absmax = quantise_nf4(four.unpacked(torch.float32).view(-1))
    assert torch.equal(again, four.packed)
    assert torch.equal(absmax, four.absmax)
    odd = torch.randn(3, 37)  # neither whole blocks nor whole bytes
    packed, maxima = quantise_nf4(odd.view(-1))
    assert (len(packed), len(maxima)) == (56, 2)
    assert (Nf4Linear(packed, maxima, odd.shape).unpacked(torch.float32) - odd).abs().max() < 0.5


def test_a_zero_row_and_a_zero_block_stay_zero() -> None:
    weight = torch.zeros(2, 64)
    kept, scale = quantise_int8(weight)
    assert torch.equal(Int8Linear(kept, scale)(torch.ones(1, 64)), torch.zeros(1, 2))
    four = Nf4Linear(*quantise_nf4(weight.view(-1)), weight.shape)
    assert torch.equal(four.unpacked(torch.float32), weight)


def test_memory_does_not_grow_with_the_model(middle: Path, tmp_path: Path) -> None:
    def measure(*arguments: str) -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, str(HERE / "measure_memory.py"), *arguments],
            cwd=SERVER_ROOT, env={**os.environ, "PYTHONPATH": str(SERVER_ROOT)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    source = sum(path.stat().st_size for path in middle.rglob("*.safetensors"))
    share = str(tmp_path / "wan")
    made = measure("prepare", str(middle), share, "24g")
    ours = measure("load", share, "", "24g")
    theirs = measure("stock", str(middle), "", "24g")
    for what, one in (("prepare", made), ("load", ours), ("stock from_pretrained", theirs)):
        print(
            f"{what}: {one['anonymous'] / source:.2f} of the model's {source / 1e6:.0f} MB in "
            f"memory of its own, {one['resident'] / source:.2f} resident, {one['seconds']} s"
        )

    assert made["resident"] < 100e6  # pieces of 16 MiB, a few at a time
    assert ours["anonymous"] < 60e6  # hashing: blocks of 8 MiB
    assert ours["anonymous"] < theirs["anonymous"] / 2
    assert ours["resident"] < theirs["resident"] / 2


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 1)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("vae/diffusion_pytorch_model.safetensors", lambda path: flip(path, -1 % 4096), "SHA-256"),
    ("transformer/diffusion_pytorch_model.safetensors", cut, "bytes instead of"),
    ("text_encoder/model.safetensors", Path.unlink, "is missing"),
    ("transformer/config.json", lambda path: flip(path, 3), "SHA-256"),
    ("tokenizer/tokenizer.json", lambda path: flip(path, 40), "SHA-256"),
    (MANIFEST, lambda path: flip(path, 200), "is damaged"),
    (MANIFEST, cut, "is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "word"), DAMAGE)
def test_damage_is_refused_by_the_name_of_the_file(
    name: str, damage: Callable[[Path], None], word: str, prepared: Path
) -> None:
    damage(prepared / name)

    with pytest.raises(CheckpointError) as refused:
        Checkpoint.open(prepared)
    assert str(refused.value).startswith(f"{prepared / name} ")
    assert word in str(refused.value)
    assert "prepare it again" in str(refused.value)


def test_a_quick_look_sees_sizes_and_no_more(prepared: Path) -> None:
    flip(prepared / "vae/diffusion_pytorch_model.safetensors", 4096)
    Checkpoint.open(prepared, quick=True)
    cut(prepared / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="bytes instead of"):
        Checkpoint.open(prepared, quick=True)


def test_another_profile_and_another_format_are_refused(prepared: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was prepared for the profile t4, and .* runs 24g"):
        Checkpoint.open(prepared, P24G)
    manifest = prepared / MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(CheckpointError, match=r"in format 9, and this server reads format 1"):
        Checkpoint.open(prepared)


def test_what_is_there_is_left_alone_or_refused(tiny: Path, prepared: Path, tmp_path: Path) -> None:
    wanted = Wanted(str(tiny), T4, prepared)
    manifest = tmp_path / "wan" / MANIFEST
    before = manifest.stat().st_mtime_ns
    assert not prepare(wanted).changed
    assert manifest.stat().st_mtime_ns == before

    with pytest.raises(CheckpointError, match=r"for the profile t4 and not for 24g"):
        prepare(replace(wanted, profile=P24G))
    with pytest.raises(CheckpointError, match=r"not from Wan-AI/Wan2.2-TI2V-5B-Diffusers"):
        prepare(replace(wanted, source="Wan-AI/Wan2.2-TI2V-5B-Diffusers"))
    cut(prepared / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"vae/\S+ is damaged"):
        prepare(wanted)


def test_a_directory_of_something_else_is_refused(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not empty and holds no manifest.json"):
        prepare(Wanted(str(tiny), T4, target))
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]

    empty = tmp_path / "empty"
    empty.mkdir()
    work_directory(empty).mkdir()
    (work_directory(empty) / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds something that is no preparation"):
        prepare(Wanted(str(tiny), T4, empty))
    (work_directory(empty) / "thesis.txt").unlink()
    assert prepare(Wanted(str(tiny), T4, empty)).changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "home"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda source: (source / "model_index.json").unlink(), "has no model_index.json"),
        (lambda source: shutil.rmtree(source / "vae"), "has no vae/config.json"),
        (lambda source: shutil.rmtree(source / "tokenizer"), "has no tokenizer"),
        (lambda source: cut(source / "vae/diffusion_pytorch_model.safetensors"), "is damaged"),
        (
            lambda source: _edit(source / "model_index.json", _class_name="FluxPipeline"),
            "is a FluxPipeline, and this server runs Wan2.2-TI2V",
        ),
        (
            lambda source: _edit(source / "transformer/config.json", num_layers=3),
            "has no blocks.2.",
        ),
        (
            lambda source: _edit(source / "transformer/config.json", ffn_dim=96),
            r"is \[64\], and config.json makes it \[96\]",
        ),
        (lambda source: _reweigh(source, lambda one: one.to(torch.int8)), "quantised already"),
        (lambda source: _reweigh(source, lambda one: one * 1e6), "beyond F16"),
        (lambda source: _reweigh(source, lambda one: one * float("nan")), "what is no number"),
    ],
)
def test_a_source_that_is_no_whole_wan_is_refused(
    spoil: Callable[[Path], object], sentence: str, tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    spoil(source)
    with pytest.raises(CheckpointError, match=sentence):
        prepare(Wanted(str(source), T4, tmp_path / "wan"))
    assert not (tmp_path / "wan").exists()


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _reweigh(source: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = source / "transformer/diffusion_pytorch_model.safetensors"
    held = load_file(path)
    save_file(held | {"proj_out.weight": change(held["proj_out.weight"])}, path)


def test_too_little_room_is_said_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(CheckpointError, match=r"has 0.00 GB free and preparing takes 0.07 GB"):
        prepare(Wanted(str(tiny), T4, tmp_path / "wan"))
    assert not list(work_directory(tmp_path / "wan").glob("*/*.safetensors"))


def test_the_engine_s_generator_loads_a_prepared_checkpoint(whole: Path) -> None:
    generator = load_generator(str(whole), "cpu", "auto", 1, profile=PROFILES["t4"])
    assert generator.dtype == "float16"
    assert generator.generate(PARAMETERS).std() > 5
    with pytest.raises(CheckpointError, match="was prepared for the profile t4"):
        load_generator(str(whole), "cpu", "auto", 1, profile=P24G)


# By the command and by the server.


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def test_the_commands_prepare_and_check(tiny: Path, videos: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    arguments = (
        "model", "prepare", "--source", str(tiny), "--profile", "t4",
        "--output", str(share / "wan"), "--json",
    )  # fmt: skip
    done = run_program(*arguments, output_dir=videos)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["changed"], said["profile"], said["source"]) == (True, "t4", str(tiny))
    assert "[3/3] vae/diffusion_pytorch_model.safetensors: " in done.stderr  # progress
    assert [path.name for path in share.iterdir()] == ["wan"]
    again = run_program(*arguments, output_dir=videos)
    assert json.loads(again.stdout)["changed"] is False

    checked = run_program("model", "check", str(share / "wan"), output_dir=videos, T2V_DEVICE="cpu")
    assert checked.returncode == 0, checked.stderr
    assert f"{share / 'wan'} works on cpu in float16: loaded in " in checked.stdout
    assert "peak memory " in checked.stdout
    flip(share / "wan/vae/config.json", 5)
    ill = run_program("model", "check", str(share / "wan"), "--files", "--json", output_dir=videos)
    assert ill.returncode == 1
    assert json.loads(ill.stdout)["ok"] is False
    assert ill.stderr.splitlines()[-1].startswith(
        f"t2v-server: {share / 'wan/vae/config.json'} is damaged"
    )


def test_a_server_makes_videos_with_a_prepared_checkpoint(whole: Path, videos: Path) -> None:
    with Server.start(
        videos, T2V_MODEL=str(whole), T2V_DEVICE="cpu", T2V_WIDTH="64", T2V_HEIGHT="64",
        T2V_FRAMES="9", T2V_STEPS="2",
    ) as server:  # fmt: skip
        server.wait_until_ready()
        assert probe(server.generate("a dog").video).num_frames == 9


def test_a_server_says_why_it_does_not_load_one(prepared: Path, videos: Path) -> None:
    flip(prepared / "vae/diffusion_pytorch_model.safetensors", 4096)
    damaged = f"{prepared}/vae/diffusion_pytorch_model.safetensors is damaged"
    with Server.start(videos, T2V_MODEL=str(prepared), T2V_DEVICE="cpu") as server:
        assert damaged in _failure(server)
        assert damaged in server.log.read_text()


def test_a_half_prepared_one_is_called_that(prepared: Path) -> None:
    work = work_directory(prepared)
    prepared.rename(work)
    (work / MANIFEST).rename(work / JOURNAL)
    for directory in (prepared, work):
        with pytest.raises(CheckpointError, match=r"run 'model prepare' to its end"):
            Checkpoint.open(directory)
    with pytest.raises(CheckpointError, match=r"is no directory: name one"):
        Checkpoint.open(prepared.with_name("nothing"))


def _failure(server: Server) -> str:
    """What ``/ready`` says once the engine has given up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = server.get("/ready")
        if "could not be loaded" in answer.text:
            assert answer.status == 503
            return answer.text
        time.sleep(0.2)
    raise AssertionError(answer.text)
