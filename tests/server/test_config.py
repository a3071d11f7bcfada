"""Settings: defaults, overrides, and a clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from t2v_server.config import ConfigError, Settings, unknown_variables
from t2v_server.profiles import TINY, WAN22_TI2V_5B


def test_the_defaults_are_the_documented_contract() -> None:
    settings = Settings.from_environ({})

    assert settings.bind == "0.0.0.0:8080"
    assert settings.output_dir == Path("/shared/videos")
    assert settings.model == "tiny"
    assert settings.video == TINY
    assert settings.torch_threads is None
    assert settings.queue_size == 64


def test_threads_exceed_what_can_wait() -> None:
    settings = Settings.from_environ({"T2V_QUEUE_SIZE": "100"})

    assert settings.http_threads > settings.queue_size + 1


@pytest.mark.parametrize("model", ["Wan-AI/Wan2.2-TI2V-5B-Diffusers", "/models/wan"])
def test_any_other_model_gets_the_published_settings_of_the_5b(model: str) -> None:
    assert Settings.from_environ({"T2V_MODEL": model}).video == WAN22_TI2V_5B
    assert (WAN22_TI2V_5B.width, WAN22_TI2V_5B.height, WAN22_TI2V_5B.num_frames) == (1280, 704, 121)


def test_the_operator_overrides_the_model_one_by_one() -> None:
    video = Settings.from_environ(
        {"T2V_WIDTH": "832", "T2V_FRAMES": "49", "T2V_GUIDANCE_SCALE": "1.5", "T2V_STEPS": " "}
    ).video

    assert (video.width, video.height) == (832, TINY.height)
    assert (video.num_frames, video.guidance_scale) == (49, 1.5)
    assert video.num_inference_steps == TINY.num_inference_steps  # blank counts as unset


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("T2V_BIND", "8080", "set it to HOST:PORT"),
        ("T2V_BIND", "0.0.0.0:99999", "set it to HOST:PORT"),
        ("T2V_OUTPUT_DIR", "videos", "set it to a directory such as /shared/videos"),
        ("T2V_INSTANCE", "a/b", "set it to at most 63 letters"),
        ("T2V_DEVICE", "gpu", "set it to auto, cpu or cuda"),
        ("T2V_DTYPE", "int8", "set it to auto, float32, bfloat16 or float16"),
        ("T2V_DTYPE", "bfloat16", "unset it or set T2V_MODEL"),
        ("T2V_TORCH_THREADS", "0", "set it to a whole number from 1 to 1024"),
        ("T2V_WIDTH", "100", "set it to 96 or 128"),
        ("T2V_HEIGHT", "tall", "set it to a whole number from 32 to 4096"),
        ("T2V_FRAMES", "120", "set it to 117 or 121"),
        ("T2V_STEPS", "0", "set it to a whole number from 1 to 1000"),
        ("T2V_GUIDANCE_SCALE", "nan", "set it to a number from 0 to 50"),
        ("T2V_FPS", "1.5", "set it to a whole number from 1 to 120"),
        ("T2V_QUEUE_SIZE", "-1", "set it to a whole number from 1 to 4096"),
        ("T2V_MAX_PROMPT_CHARS", "0", "set it to a whole number from 1 to 20000"),
        ("T2V_GRACEFUL_TIMEOUT", "10s", "set it to a whole number from 1 to 86400"),
        ("T2V_SWEEP_AGE", "1", "set it to a whole number from 60 to 31536000"),
        ("T2V_LOG_LEVEL", "loud", "set it to debug, info, warning or error"),
    ],
)
def test_a_mistake_names_the_variable_the_value_and_the_remedy(
    name: str, value: str, advice: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ({name: value})

    sentence = str(caught.value)
    assert sentence.startswith(f"{name}=")
    assert value in sentence
    assert advice in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_misspelt_variable_is_noticed() -> None:
    assert unknown_variables({"T2V_OUTPUT_DRI": "/x", "T2V_MODEL": "tiny", "HOME": "/"}) == [
        "T2V_OUTPUT_DRI"
    ]
