"""The served OpenAPI document: valid, complete, and what the server really does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server
from openapi_spec_validator import OpenAPIV31SpecValidator

HERE = Path(__file__).parent
MAX_PIXELS, MAX_FRAMES = 4096, 9


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose largest video takes little."""
    with Server.start(
        tmp_path_factory.mktemp("openapi-videos"),
        T2V_MAX_PIXELS=str(MAX_PIXELS),
        T2V_MAX_FRAMES=str(MAX_FRAMES),
        T2V_MAX_STEPS="4",
        T2V_QUEUE_SIZE="4096",
    ) as it:
        it.wait_until_ready()
        yield it


def test_it_is_valid_openapi_3_1(server: Server) -> None:
    document = server.get("/openapi.json").json()

    assert document["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_route_is_in_it(server: Server) -> None:
    from t2v_server.app import create_app
    from t2v_server.config import Settings

    app = create_app(
        Settings.from_environ(
            {"T2V_OUTPUT_DIR": str(server.output_dir), "T2V_STATE_DIR": str(server.state_dir)}
        )
    )
    routes = {
        rule.rule.replace("<", "{").replace(">", "}")
        for rule in app.url_map.iter_rules()
        if not rule.rule.startswith("/static")
    }

    assert routes == set(server.get("/openapi.json").json()["paths"])


def test_it_tells_the_limits_of_the_model(server: Server) -> None:
    schema = server.get("/openapi.json").json()["components"]["schemas"]["VideoRequest"]

    assert schema["properties"]["width"] == {
        "type": "integer", "title": "Width", "description": "Pixels; stands above `size`.",
        "minimum": 32, "maximum": 512, "multipleOf": 32, "default": 64,
    }  # fmt: skip
    assert schema["properties"]["num_frames"]["enum"][:3] == [1, 5, 9]
    assert schema["properties"]["model"]["enum"] == ["tiny"]


def test_schemathesis_finds_no_difference(small: Server) -> None:
    """Examples, edge cases, random and stateful requests; every check that it has."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"), "run", f"{small.url}/openapi.json",
            "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful",
            "--max-examples", os.environ.get("T2V_SCHEMATHESIS_EXAMPLES", "30"), "--seed", "1",
            "--request-timeout", "60", "--workers", "1",
        ],
        cwd=small.state_dir,  # it writes a cache there
        env={
            **os.environ,
            "PYTHONPATH": str(HERE),
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "T2V_TEST_MAX_PIXELS": str(MAX_PIXELS),
            "T2V_TEST_MAX_FRAMES": str(MAX_FRAMES),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert small.metric("t2v_http_requests_total", code="500") == 0
    assert small.metric("t2v_jobs_total", outcome="completed") > 20


def test_the_documents_can_be_read_without_scripts(server: Server) -> None:
    page = server.get("/docs")

    assert page.headers["Content-Type"].startswith("text/html")
    assert "<script" not in page.text
    for word in ("/v1/videos/{video_id}/cancel", "num_inference_steps", "Idempotency-Key", "507"):
        assert word in page.text
