"""What Prometheus, the dashboards and the autoscaler read."""

from __future__ import annotations

import pytest
from harness import Server

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
    "t2v_queue_depth",
    "t2v_queue_capacity",
    "t2v_jobs_in_flight",
    "t2v_jobs_active",
    "t2v_oldest_job_age_seconds",
    "t2v_model_loaded",
    "t2v_model_load_seconds",
    "t2v_model_info",
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
    ]
    before = [server.metric(name, **labels) for name, labels in counted]
    bytes_before = server.metric("t2v_video_bytes_written_total")

    video = server.generate("a dog").video

    after = [server.metric(name, **labels) for name, labels in counted]
    assert after == [count + 1 for count in before]
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


def test_latency_buckets_reach_an_hour(server: Server) -> None:
    text = server.get("/metrics").text

    assert 't2v_generation_duration_seconds_bucket{le="3600.0"}' in text
    assert 't2v_model_info{device="cpu",dtype="float32",model="tiny"} 1.0' in text


def test_nothing_is_left_in_flight(server: Server) -> None:
    assert server.metric("t2v_jobs_active") == 0
    assert server.metric("t2v_http_requests_in_progress") == 1  # this scrape
