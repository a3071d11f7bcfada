"""Settings: defaults, overrides, and a clear sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from t2v_server.config import ConfigError, Settings, unknown_variables
from t2v_server.profiles import P24G, TINY


def test_the_defaults_are_the_documented_contract() -> None:
    settings = Settings.from_environ({})

    assert settings.bind == "0.0.0.0:8080"
    assert settings.output_dir == Path("/shared/videos")
    assert settings.engine.model == "tiny"
    assert settings.video == TINY.defaults
    assert settings.limits == TINY.limits
    assert settings.engine.torch_threads is None
    assert settings.jobs.queue_size == 64
    assert settings.jobs.redis is None
    assert not settings.jobs.reuse  # a new file per request
    assert not settings.clients.authenticated  # as in the documented curl
    assert settings.retention.max_age is settings.retention.max_bytes is None


def test_threads_exceed_what_can_wait() -> None:
    settings = Settings.from_environ({"T2V_QUEUE_SIZE": "100"})

    assert settings.http_threads > settings.jobs.queue_size + settings.clients.max_streams


@pytest.mark.parametrize("model", ["Wan-AI/Wan2.2-TI2V-5B-Diffusers", "/models/wan"])
def test_any_other_model_gets_the_published_settings_of_the_5b(model: str) -> None:
    video = Settings.from_environ({"T2V_MODEL": model}).video
    assert video == P24G.defaults
    assert (video.width, video.height, video.num_frames) == (1280, 704, 121)


def test_the_operator_overrides_the_model_one_by_one() -> None:
    video = Settings.from_environ(
        {"T2V_WIDTH": "832", "T2V_FRAMES": "49", "T2V_GUIDANCE_SCALE": "1.5", "T2V_STEPS": " "}
    ).video

    assert (video.width, video.height) == (832, TINY.defaults.height)
    assert (video.num_frames, video.guidance_scale) == (49, 1.5)
    assert video.num_inference_steps == TINY.defaults.num_inference_steps  # blank counts as unset


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
        ("T2V_LOG_FORMAT", "xml", "set it to text or json"),
        ("T2V_FLOW_SHIFT", "0", "set it to a number from 0.01 to 50"),
        ("T2V_ENGINES", "65", "set it to a whole number from 0 to 64"),
        ("T2V_MAX_ATTEMPTS", "0", "set it to a whole number from 1 to 100"),
        ("T2V_REUSE", "yes", "set it to on or off"),
        ("T2V_RATE_LIMIT", "60", "set it to N/second, N/minute, N/hour or N/day"),
        ("T2V_API_KEYS_FILE", "/no/such/file", "set it to a file that this account may read"),
        ("T2V_STATE_DIR", "state", "set it to a directory such as /var/lib/t2v"),
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


@pytest.mark.parametrize(
    ("environ", "advice"),
    [
        ({"T2V_STORE": "redis://:secret@host/0"}, "not in the URL"),
        ({"T2V_STORE": "mysql://host"}, "set it to sqlite or to redis://HOST:PORT/0"),
        ({"T2V_ENGINES": "0"}, "set T2V_STORE to a redis:// URL, or T2V_ENGINES to 1"),
        ({"T2V_RATE_LIMIT": "9/minute", "T2V_HTTP_WORKERS": "2"}, "set T2V_HTTP_WORKERS to 1"),
        ({"T2V_CLIENT_ACTIVE": "3"}, "set T2V_API_KEYS_FILE or T2V_JWT_"),
        ({"T2V_CLIENT_DAILY": "3"}, "set T2V_API_KEYS_FILE or T2V_JWT_"),
        ({"T2V_JWT_AUDIENCE": "t2v"}, "set T2V_JWT_JWKS_URL or T2V_JWT_KEY_FILE"),
        ({"T2V_JWT_JWKS_URL": "https://id.example/jwks"}, "T2V_JWT_AUDIENCE is not set"),
        (
            {
                "T2V_JWT_JWKS_URL": "https://id.example/jwks",
                "T2V_JWT_AUDIENCE": "t2v",
                "T2V_JWT_ALGORITHMS": "RS256,HS256",
            },
            "mixes shared secrets",
        ),
        ({"T2V_WIDTH": "512", "T2V_MAX_PIXELS": "2048"}, "beyond its limits"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(environ: dict[str, str], advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ(environ)

    assert advice in str(caught.value)
    assert "secret@" not in str(caught.value)


def test_a_file_stands_behind_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "t2v.toml"
    path.write_text('queue_size = 7\nreuse = true\nbind = "127.0.0.1:1234"\n')

    settings = Settings.from_environ({"T2V_CONFIG": str(path), "T2V_BIND": "127.0.0.1:9"})

    assert (settings.jobs.queue_size, settings.jobs.reuse) == (7, True)
    assert settings.bind == "127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("queue_siez = 7", "sets 'queue_siez', which is no setting"),
        ("queue_size = [7]", "sets 'queue_size' to a list"),
        ("queue_size 7", "is not TOML"),
        ("config = 'x'", "sets 'config', which is no setting"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t2v.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"^T2V_CONFIG: ") as caught:
        Settings.from_environ({"T2V_CONFIG": str(path)})
    assert says in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^T2V_CONFIG='/no/such' cannot be read"):
        Settings.from_environ({"T2V_CONFIG": "/no/such"})
