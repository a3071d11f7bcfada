"""What Prometheus, the dashboards and the autoscaler read."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Server

STAGES = ("encoding_prompt", "denoising", "decoding")
NAMES = [
    "t2v_http_requests_total",
    "t2v_http_request_duration_seconds",
    "t2v_http_requests_in_progress",
    "t2v_jobs_total",
    "t2v_job_duration_seconds",
    "t2v_queue_wait_seconds",
    "t2v_generation_duration_seconds",
    "t2v_encoding_duration_seconds",
    "t2v_video_bytes_written_total",
    "t2v_video_bytes_expired_total",
    "t2v_jobs_reused_total",
    "t2v_job_retries_total",
    "t2v_engine_starts_total",
    "t2v_engines_ready",
    "t2v_engines_busy",
    "t2v_event_streams",
    "t2v_store_up",
    "t2v_volume_free_bytes",
    "t2v_build_info",
    "t2v_queue_depth",
    "t2v_queue_capacity",
    "t2v_jobs_in_flight",
    "t2v_jobs_active",
    "t2v_oldest_job_age_seconds",
    "t2v_model_loaded",
    "t2v_model_load_seconds",
    "t2v_model_info",
    "t2v_stage_duration_seconds",
    "t2v_profile_expected_seconds",
    "t2v_profile_expected_memory_bytes",
    "process_resident_memory_bytes",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_exposed_with_its_meaning(server: Server, name: str) -> None:
    assert f"# HELP {name} " in server.get("/metrics").text


def test_one_generation_counts_once_everywhere(server: Server) -> None:
    counted = [
        ("t2v_http_requests_total", {"route": "/generate", "method": "GET", "code": "200"}),
        ("t2v_http_request_duration_seconds_count", {"route": "/generate"}),
        ("t2v_jobs_total", {"outcome": "completed", "reason": "ok"}),
        ("t2v_job_duration_seconds_count", {}),
        ("t2v_queue_wait_seconds_count", {}),
        ("t2v_generation_duration_seconds_count", {}),
        ("t2v_encoding_duration_seconds_count", {}),
        *(("t2v_stage_duration_seconds_count", {"stage": stage}) for stage in STAGES),
    ]
    before = [server.metric(name, **labels) for name, labels in counted]
    bytes_before = server.metric("t2v_video_bytes_written_total")

    video = server.generate("a dog").video

    # The engine counts a moment after the store, and so the client, has heard of the end.
    for (name, labels), count in zip(counted, before, strict=True):
        server.wait_for_metric(name, count + 1, **labels)
    written = server.metric("t2v_video_bytes_written_total") - bytes_before
    assert written == video.stat().st_size


def test_a_refused_request_counts_by_reason(server: Server) -> None:
    labels = {"outcome": "rejected", "reason": "missing_prompt"}
    before = server.metric("t2v_jobs_total", **labels)

    server.get("/generate")

    assert server.metric("t2v_jobs_total", **labels) == before + 1


def test_paths_of_scanners_do_not_become_series(server: Server) -> None:
    server.get("/wp-login.php")

    assert "wp-login" not in server.get("/metrics").text
    assert server.metric("t2v_http_requests_total", route="other", code="404") >= 1


def test_invented_methods_do_not_become_series(server: Server) -> None:
    for number in range(5):
        server.request(f"FETCH{number}", "/healthz")

    assert "FETCH" not in server.get("/metrics").text
    assert server.metric("t2v_http_requests_total", method="other") >= 5


def test_latency_buckets_reach_an_hour(server: Server) -> None:
    text = server.get("/metrics").text

    assert 't2v_generation_duration_seconds_bucket{le="3600.0"}' in text
    assert 't2v_model_info{device="cpu",dtype="float32",model="tiny",profile="tiny"} 1.0' in text


def test_nothing_is_left_in_flight(server: Server) -> None:
    assert server.metric("t2v_jobs_active") == 0
    assert server.metric("t2v_http_requests_in_progress") == 1  # this scrape


def test_counts_are_right_under_several_workers_and_survive_a_killed_engine(
    tmp_path: Path,
) -> None:
    (tmp_path / "videos").mkdir()
    with Server.start(tmp_path / "videos", T2V_HTTP_WORKERS="3", T2V_ENGINES="2") as server:
        server.wait_until_ready()
        assert len(server.http_worker_pids()) == 3
        with ThreadPoolExecutor(6) as pool:
            answers = [one.result() for one in server.generate_later(pool, ["a"] * 12)]
        assert [answer.status for answer in answers] == [200] * 12
        server.wait_for_metric("t2v_jobs_total", 12, outcome="completed")
        # Whichever worker answers, it tells what all did.
        assert {server.metric("t2v_jobs_total", outcome="completed") for _ in range(8)} == {12}
        assert server.metric("t2v_http_requests_total", route="/generate", code="200") == 12

        os.kill(server.wait_for_engines(2)[0], signal.SIGKILL)
        server.wait_for_metric("t2v_engine_starts_total", 3)
        server.wait_for_metric("t2v_engines_ready", 2)
        assert server.generate("another").status == 200
        server.wait_for_metric("t2v_jobs_total", 13, outcome="completed")
        server.wait_for_metric("t2v_engines_busy", 0)


def test_what_prometheus_says_of_the_text(server: Server) -> None:
    """promtool is the judge where it is installed; prometheus_client's parser always."""
    from prometheus_client.parser import text_string_to_metric_families

    families = {one.name for one in text_string_to_metric_families(server.get("/metrics").text)}
    assert "t2v_jobs" in families
