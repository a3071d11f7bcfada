"""Grafana's dashboards: this module is their source, ``dashboards/*.json`` is written from it.

``make dashboards`` writes them anew; a test compares. The files are provisioned by the role and
can be imported by hand. Grafana 9.1.2 is the documented version, hence schema version 37. Plain
dicts, because grafana-foundation-sdk begins with Grafana 10.1 and Python 3.11, and what it writes
(schema 36, ``options: null``, one empty ``refId`` for all queries) would have to be mended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 37
# Name and uid of the data source that the role provisions.
DATASOURCE_NAME, DATASOURCE = "Prometheus", "prometheus"
WIDTH = 24
Json = dict[str, Any]


# Panels.


def query(expr: str, legend: str = "") -> Json:
    """One expression; ``legend`` names its series."""
    return {"expr": expr, "legendFormat": legend or "__auto"}


def panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    *queries: Json,
    width: int,
    height: int,
    options: Json,
    defaults: Json | None = None,
) -> Json:
    """A panel without its place and number, which the dashboard gives it."""
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    instant = {"instant": True, "range": False} if kind == "stat" else {"range": True}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": datasource,
        "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": []},
        "options": options,
        "targets": [
            {**one, "refId": chr(ord("A") + number), "datasource": datasource, **instant}
            for number, one in enumerate(queries)
        ],
        "gridPos": {"w": width, "h": height},
    }


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Json,
    width: int = 8,
    top: float | None = None,
) -> Json:
    """Lines over time, from 0 on; ``top``: to this value."""
    return panel(
        "timeseries",
        title,
        description,
        unit,
        *queries,
        width=width,
        height=7,
        options={
            "legend": {
                "calcs": ["lastNotNull"],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        defaults={
            "min": 0,
            **({} if top is None else {"max": top}),
            "color": {"mode": "palette-classic"},
            "custom": {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 10,
                "showPoints": "never",
            },
        },
    )


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    red_from: float | None = None,
    red_below: float | None = None,
    legend: str = "",
    width: int = 4,
) -> Json:
    """One number now; red from, or below, a value."""
    steps: list[Json] = [{"color": "green", "value": None}]
    if red_from is not None:
        steps.append({"color": "red", "value": red_from})
    if red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": red_below}]
    return panel(
        "stat",
        title,
        description,
        unit,
        query(expr, legend),
        width=width,
        height=4,
        options={
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
        defaults={
            **({"decimals": 0} if unit == "none" else {}),
            "color": {"mode": "thresholds"},
            "thresholds": {"mode": "absolute", "steps": steps},
        },
    )


# Dashboards.


def chooser(name: str, label: str, values: str) -> Json:
    """A variable with all values of a label, any number of them chosen."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": values,
        "query": {"query": values, "refId": "StandardVariableQuery"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "allValue": ".*",
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "skipUrlSync": False,
    }


def source() -> Json:
    """The variable that says which Prometheus is asked."""
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "current": {"selected": True, "text": DATASOURCE_NAME, "value": DATASOURCE},
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def dashboard(
    uid: str, title: str, description: str, variables: list[Json], rows: dict[str, list[Json]]
) -> Json:
    """Rows of panels, set from left to right, numbered in that order."""
    panels: list[Json] = []
    y = 0
    for name, members in rows.items():
        panels.append(
            {
                "type": "row",
                "title": name,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        y += 1
        x = height = 0
        for member in members:
            place = member["gridPos"]
            if x + place["w"] > WIDTH:
                y, x, height = y + height, 0, 0
            panels.append({**member, "gridPos": {"x": x, "y": y, **place}})
            x, height = x + place["w"], max(height, place["h"])
        y += height
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["t2v"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Other dashboards",
                "tags": ["t2v"],
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [source(), *variables]},
        "panels": [{"id": identity, **one} for identity, one in enumerate(panels, start=1)],
    }


SERVERS = 'job="wan22-service", instance=~"$instance"'
API = 'route=~"/v1/videos(/<video_id>(/cancel)?)?"'


def quantiles(metric: str, labels: str, window: str) -> tuple[Json, Json]:
    """The median and the 95th percentile of a histogram."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{labels}}}[{window}]))"
    return (
        query(f"histogram_quantile(0.5, {buckets})", "median"),
        query(f"histogram_quantile(0.95, {buckets})", "95 %"),
    )


def service() -> Json:
    """Requests by rate, errors and duration; the queue; the jobs; the engines."""
    return dashboard(
        "t2v-service",
        "T2V / Service",
        "Requests, queue, jobs and engines of the video service.",
        [chooser("instance", "Server", 'label_values(up{job="wan22-service"}, instance)')],
        {
            "Now": [
                number(
                    "Servers up",
                    "Servers whose metrics Prometheus could read.",
                    "none",
                    'sum(up{job="wan22-service"})',
                    red_below=1,
                ),
                number(
                    "Engines ready",
                    "Engines with the model loaded and warm, of all servers.",
                    "none",
                    'sum(t2v_engines_ready{job="wan22-service"})',
                    red_below=1,
                ),
                number(
                    "Jobs waiting",
                    "Accepted jobs that no engine has taken yet.",
                    "none",
                    "site:t2v_queue_depth:max",
                ),
                number(
                    "Oldest job",
                    "Age of the oldest unfinished job; T2VOldestJobTooOld looks at it.",
                    "s",
                    'max(t2v_oldest_job_age_seconds{job="wan22-service"})',
                    red_from=7200,
                ),
                number(
                    "Completed, last hour",
                    "Videos that were completed within the last hour.",
                    "none",
                    "site:t2v_jobs_completed:increase1h",
                ),
                number(
                    "Failed, last hour",
                    "Accepted jobs that ended without a video within the last hour, cancelled ones "
                    "not counted.",
                    "none",
                    'sum(reason:t2v_jobs_failed:increase1h{reason!="cancelled"}) or vector(0)',
                    red_from=3,
                ),
            ],
            "Requests: rate, errors, duration": [
                graph(
                    "Requests by route",
                    "HTTP requests a second. /healthz, /ready and /metrics are asked by machines.",
                    "reqps",
                    query(
                        "sum by (route) (rate(t2v_http_requests_total{"
                        + SERVERS
                        + "}[$__rate_interval]))",
                        "{{route}}",
                    ),
                ),
                graph(
                    "Requests by status",
                    "HTTP requests a second by the status they were answered with.",
                    "reqps",
                    query(
                        "sum by (code) (rate(t2v_http_requests_total{"
                        + SERVERS
                        + "}[$__rate_interval]))",
                        "{{code}}",
                    ),
                ),
                graph(
                    "Duration of submit and status requests",
                    "Time to answer /v1/videos and /v1/videos/<id>; not /generate, which waits for "
                    "the video.",
                    "s",
                    *quantiles(
                        "t2v_http_request_duration_seconds", f"{SERVERS}, {API}", "$__rate_interval"
                    ),
                ),
                graph(
                    "Failed share of submit and status requests",
                    "Answers with 5xx, which T2VApiErrorBudgetBurn looks at; 1 % over 30 days is "
                    "the budget.",
                    "percentunit",
                    query("site:t2v_api_errors:ratio_rate5m", "5 minutes"),
                    query("site:t2v_api_errors:ratio_rate1h", "1 hour"),
                    query("site:t2v_api_errors:ratio_rate6h", "6 hours"),
                    query("site:t2v_api_errors:ratio_rate3d", "3 days"),
                ),
                graph(
                    "Requests being answered",
                    "Open requests, those of /generate that wait for their video included.",
                    "none",
                    query(
                        "sum by (instance) (t2v_http_requests_in_progress{" + SERVERS + "})",
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Clients that watch a job",
                    "Open streams of events.",
                    "none",
                    query("sum by (instance) (t2v_event_streams{" + SERVERS + "})", "{{instance}}"),
                ),
            ],
            "Queue": [
                graph(
                    "Jobs",
                    "The one queue that all servers share, and what engines work on.",
                    "none",
                    query("site:t2v_queue_depth:max", "waiting"),
                    query('max(t2v_jobs_in_flight{job="wan22-service"})', "in flight"),
                    query('max(t2v_queue_capacity{job="wan22-service"})', "capacity"),
                ),
                graph(
                    "Queue used",
                    "Waiting jobs as a share of those that may wait; a full queue answers 429.",
                    "percentunit",
                    query("site:t2v_queue_fill:ratio", "used"),
                    top=1,
                ),
                graph(
                    "Age of the oldest job",
                    "Of the jobs that are not finished, since it was submitted.",
                    "s",
                    query('max(t2v_oldest_job_age_seconds{job="wan22-service"})', "oldest"),
                ),
            ],
            "Jobs": [
                graph(
                    "Jobs by outcome, last hour",
                    "How many ended within the hour before, by outcome and reason.",
                    "none",
                    query(
                        "sum by (outcome, reason) (increase(t2v_jobs_total{" + SERVERS + "}[1h]))",
                        "{{outcome}} {{reason}}",
                    ),
                ),
                graph(
                    "From submission to file",
                    "Duration of the jobs completed within the hour before.",
                    "s",
                    *quantiles("t2v_job_duration_seconds", SERVERS, "1h"),
                ),
                graph(
                    "Waiting for an engine",
                    "Time in the queue of the jobs taken within the hour before.",
                    "s",
                    *quantiles("t2v_queue_wait_seconds", SERVERS, "1h"),
                ),
                graph(
                    "Generating",
                    "Time in the pipeline, of the jobs of the hour before: text, denoising, VAE; "
                    "and what the profile expects of its defaults.",
                    "s",
                    *quantiles("t2v_generation_duration_seconds", SERVERS, "1h"),
                    query(
                        "max by (profile) (t2v_profile_expected_seconds{" + SERVERS + "})",
                        "expected of {{profile}}",
                    ),
                ),
                graph(
                    "Encoding and publishing",
                    "Time to encode the mp4 and write it to the share, of the hour before.",
                    "s",
                    *quantiles("t2v_encoding_duration_seconds", SERVERS, "1h"),
                ),
                graph(
                    "Reused and retried, last hour",
                    "Requests answered with an earlier job, and jobs taken again after an engine "
                    "was lost, within the hour before.",
                    "none",
                    query("sum(increase(t2v_jobs_reused_total{" + SERVERS + "}[1h]))", "reused"),
                    query("sum(increase(t2v_job_retries_total{" + SERVERS + "}[1h]))", "retried"),
                ),
            ],
            "Engines and videos": [
                graph(
                    "Engines busy",
                    "Share of the ready engines that work on a job.",
                    "percentunit",
                    query(
                        "sum by (instance) (t2v_engines_busy{"
                        + SERVERS
                        + "}) / (sum by (instance) (t2v_engines_ready{"
                        + SERVERS
                        + "}) > 0)",
                        "{{instance}}",
                    ),
                    top=1,
                ),
                graph(
                    "Engines started, last hour",
                    "Starts within the hour before; more than one is restarts.",
                    "none",
                    query(
                        "sum by (instance) (increase(t2v_engine_starts_total{"
                        + SERVERS
                        + "}[1h]))",
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Time to load the model",
                    "From an engine's start to warm; the slowest.",
                    "s",
                    query(
                        "max by (instance) (t2v_model_load_seconds{" + SERVERS + "})",
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Videos written and removed",
                    "Bytes a second that were published, and that retention removed.",
                    "Bps",
                    query(
                        "sum(rate(t2v_video_bytes_written_total{"
                        + SERVERS
                        + "}[$__rate_interval]))",
                        "written",
                    ),
                    query(
                        "sum(rate(t2v_video_bytes_expired_total{"
                        + SERVERS
                        + "}[$__rate_interval]))",
                        "removed",
                    ),
                ),
                graph(
                    "Room for videos",
                    "What the volume of the videos can still take.",
                    "bytes",
                    query('min(t2v_volume_free_bytes{job="wan22-service"})', "free"),
                ),
                graph(
                    "Memory of the HTTP worker",
                    "Resident memory of the process that answered the scrape, without the engines.",
                    "bytes",
                    query(
                        "max by (instance) (process_resident_memory_bytes{" + SERVERS + "})",
                        "{{instance}}",
                    ),
                ),
            ],
        },
    )


NODES = 'job="node", instance=~"$instance"'


def hosts() -> Json:
    """Every host: load, memory, disks, network, clock, units."""
    return dashboard(
        "t2v-hosts",
        "T2V / Hosts",
        "All hosts of the site, and whether the monitoring sees them.",
        [chooser("instance", "Host", 'label_values(up{job="node"}, instance)')],
        {
            "Now": [
                number(
                    "Hosts up",
                    "Hosts whose node_exporter answers.",
                    "none",
                    'sum(up{job="node"})',
                    red_below=1,
                ),
                number(
                    "Targets down",
                    "Targets of any job that Prometheus cannot read.",
                    "none",
                    "count(up == 0) or vector(0)",
                    red_from=1,
                ),
                number(
                    "Alerts firing",
                    "All severities, the Watchdog not counted.",
                    "none",
                    'count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)',
                    red_from=1,
                ),
                number(
                    "Fullest disk",
                    "The fullest file system of all hosts.",
                    "percentunit",
                    "max(instance_mountpoint:node_filesystem_utilisation:ratio)",
                    red_from=0.9,
                ),
                number(
                    "Next certificate to end",
                    "Time left to the certificate or token that ends first.",
                    "s",
                    "min(instance_path:t2v_certificate_left:seconds)",
                    red_below=28 * 24 * 3600,
                ),
                number(
                    "Failed units",
                    "systemd units in the state failed, of all hosts.",
                    "none",
                    'sum(node_systemd_unit_state{job="node", state="failed"})',
                    red_from=1,
                ),
            ],
            "Load": [
                graph(
                    "CPU",
                    "Share of the time in which the CPUs worked, over 5 minutes.",
                    "percentunit",
                    query(
                        'instance:node_cpu_utilisation:rate5m{instance=~"$instance"}',
                        "{{instance}}",
                    ),
                    top=1,
                ),
                graph(
                    "Load for each CPU",
                    "Processes that run or wait, for each CPU; above 1 they wait.",
                    "none",
                    query(
                        'instance:node_load1_per_cpu:ratio{instance=~"$instance"}', "{{instance}}"
                    ),
                ),
                graph(
                    "Memory",
                    "Share in use; what the kernel can free counts as free.",
                    "percentunit",
                    query(
                        'instance:node_memory_utilisation:ratio{instance=~"$instance"}',
                        "{{instance}}",
                    ),
                    top=1,
                ),
            ],
            "Disks and network": [
                graph(
                    "Disks: space used",
                    "By file system; the share of the videos has a dashboard of its own.",
                    "percentunit",
                    query(
                        'instance_mountpoint:node_filesystem_utilisation:ratio{instance=~"$instance"}',
                        "{{instance}} {{mountpoint}}",
                    ),
                    top=1,
                ),
                graph(
                    "Disks: busy",
                    "Share of the time in which a disk had something to do.",
                    "percentunit",
                    query(
                        "max by (instance) (rate(node_disk_io_time_seconds_total{"
                        + NODES
                        + "}[$__rate_interval]))",
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Network",
                    "Bytes a second, in and out, without loopback and containers' interfaces.",
                    "Bps",
                    *[
                        query(
                            f"sum by (instance) (rate(node_network_{way}_bytes_total{{"
                            + NODES
                            + ', device!~"lo|veth.*|docker.*|br-.*|cni.*|flannel.*|cali.*"}'
                            + "[$__rate_interval]))",
                            "{{instance}} " + word,
                        )
                        for way, word in (("receive", "in"), ("transmit", "out"))
                    ],
                ),
            ],
            "Health": [
                graph(
                    "Clock",
                    "How far the clock may be off, as the kernel estimates it.",
                    "s",
                    query("node_timex_maxerror_seconds{" + NODES + "}", "{{instance}}"),
                ),
                graph(
                    "Running since",
                    "Time since the host was booted.",
                    "s",
                    query(
                        "node_time_seconds{" + NODES + "} - node_boot_time_seconds{" + NODES + "}",
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Targets up",
                    "Share of each job's targets that Prometheus can read.",
                    "percentunit",
                    query("job:up:ratio", "{{job}}"),
                    top=1,
                ),
            ],
        },
    )


def storage() -> Json:
    """The share, the registry, and what stands in front of and behind the service."""
    return dashboard(
        "t2v-storage",
        "T2V / NFS, registry, edge",
        "What the service needs: the share of the videos, image registry, edge, job store.",
        [],
        {
            "Share of the videos (NFS)": [
                graph(
                    "Export: space used",
                    "Share of the exported file system that is full.",
                    "percentunit",
                    query("instance_path:t2v_nfs_export_used:ratio", "{{instance}} {{path}}"),
                    top=1,
                ),
                graph(
                    "Export: room",
                    "What is left of the exported file system.",
                    "bytes",
                    query('t2v_nfs_export_free_bytes{job="node"}', "{{instance}} {{path}}"),
                ),
                graph(
                    "Export: inodes used",
                    "Share of the exported file system's inodes that is used.",
                    "percent",
                    query(
                        't2v_nfs_export_used_inodes_percent{job="node"}', "{{instance}} {{path}}"
                    ),
                    top=100,
                ),
                graph(
                    "NFS operations",
                    "Requests a second to the kernel's server, the five most frequent kinds.",
                    "ops",
                    query(
                        "topk(5, sum by (method) "
                        '(rate(node_nfsd_requests_total{job="node"}[$__rate_interval])))',
                        "{{method}}",
                    ),
                ),
                graph(
                    "NFS throughput",
                    "Bytes a second that the kernel's server reads from and writes to its disk.",
                    "Bps",
                    query(
                        'sum(rate(node_nfsd_disk_bytes_read_total{job="node"}[$__rate_interval]))',
                        "read",
                    ),
                    query(
                        'sum(rate(node_nfsd_disk_bytes_written_total{job="node"}[$__rate_interval]))',
                        "written",
                    ),
                ),
                graph(
                    "NFS mounts that do not answer",
                    "1 for a mount of a worker that is stale; NfsMountStale looks at it.",
                    "none",
                    query(
                        "max by (instance, mountpoint) "
                        '(node_filesystem_device_error{job="node", fstype=~"nfs.*"})',
                        "{{instance}} {{mountpoint}}",
                    ),
                ),
            ],
            "Image registry": [
                number(
                    "Registry",
                    "1 while the registry's metrics can be read.",
                    "none",
                    'min(up{job="registry"})',
                    red_below=1,
                ),
                graph(
                    "Registry: requests",
                    "Requests a second by the status they were answered with.",
                    "reqps",
                    query(
                        "sum by (code) "
                        '(rate(registry_http_requests_total{job="registry"}[$__rate_interval]))',
                        "{{code}}",
                    ),
                    width=10,
                ),
                graph(
                    "Registry: duration",
                    "Time to answer a request.",
                    "s",
                    *quantiles(
                        "registry_http_request_duration_seconds",
                        'job="registry"',
                        "$__rate_interval",
                    ),
                    width=10,
                ),
            ],
            "Edge and job store (t2v_runtime: docker)": [
                graph(
                    "Edge: requests",
                    "Requests a second that nginx accepts.",
                    "reqps",
                    query(
                        "sum by (instance) "
                        '(rate(nginx_http_requests_total{job="edge"}[$__rate_interval]))',
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Edge: connections",
                    "Connections of nginx; those that wait are kept alive.",
                    "none",
                    query('sum(nginx_connections_active{job="edge"})', "open"),
                    query('sum(nginx_connections_waiting{job="edge"})', "waiting"),
                ),
                graph(
                    "Job store: memory",
                    "Share of its memory that Redis uses; full, it refuses jobs.",
                    "percentunit",
                    query(
                        'redis_memory_used_bytes{job="redis"}'
                        ' / (redis_memory_max_bytes{job="redis"} > 0)',
                        "{{instance}}",
                    ),
                    top=1,
                ),
                graph(
                    "Job store: commands",
                    "Commands a second that Redis answers.",
                    "ops",
                    query(
                        "sum by (instance) "
                        '(rate(redis_commands_processed_total{job="redis"}[$__rate_interval]))',
                        "{{instance}}",
                    ),
                ),
                graph(
                    "Job store: clients",
                    "Connections to Redis: every HTTP worker and every engine has some.",
                    "none",
                    query('redis_connected_clients{job="redis"}', "{{instance}}"),
                ),
                graph(
                    "Job store: on disk",
                    "1 while Redis could write its append-only file.",
                    "none",
                    query('redis_aof_last_write_status{job="redis"}', "{{instance}}"),
                    top=1,
                ),
            ],
        },
    )


KSM = 'job="kube-state-metrics"'
SPACE = KSM + ', namespace=~"$namespace"'


def cluster() -> Json:
    """Nodes, pods, autoscaler, volumes, as kube-state-metrics tells them."""
    autoscaler = "kube_horizontalpodautoscaler_"
    return dashboard(
        "t2v-cluster",
        "T2V / Cluster",
        "The cluster (t2v_runtime: kubernetes): nodes, pods, autoscaler, GPUs, volumes.",
        [chooser("namespace", "Namespace", "label_values(kube_namespace_created, namespace)")],
        {
            "Now": [
                number(
                    "Nodes ready",
                    "Nodes whose kubelet says that they are ready.",
                    "none",
                    f'sum(kube_node_status_condition{{{KSM}, condition="Ready", status="true"}})',
                    red_below=1,
                ),
                number(
                    "Pods pending",
                    "Pods that no node runs yet.",
                    "none",
                    f'sum(kube_pod_status_phase{{{SPACE}, phase="Pending"}})',
                    red_from=1,
                ),
                number(
                    "GPUs",
                    "GPUs that the nodes can give to pods.",
                    "none",
                    "site:kube_gpu_allocatable:sum",
                    red_below=1,
                ),
                number(
                    "GPUs asked for",
                    "GPUs that running and pending pods ask for.",
                    "none",
                    "site:kube_gpu_requested:sum",
                ),
                number(
                    "Replicas",
                    "Pods of the service's deployment that are available.",
                    "none",
                    f"sum(kube_deployment_status_replicas_available{{{KSM}, "
                    'deployment="wan22-t2v-deployment"})',
                    red_below=1,
                ),
                number(
                    "Volumes not bound",
                    "Persistent volumes that failed or wait.",
                    "none",
                    f'sum(kube_persistentvolume_status_phase{{{KSM}, phase=~"Failed|Pending"}})',
                    red_from=1,
                ),
            ],
            "Scaling": [
                graph(
                    "Autoscaler",
                    "Replicas that the autoscaler has, wants and may have.",
                    "none",
                    query(
                        f"{autoscaler}status_current_replicas{{{SPACE}}}",
                        "{{horizontalpodautoscaler}} has",
                    ),
                    query(
                        f"{autoscaler}status_desired_replicas{{{SPACE}}}",
                        "{{horizontalpodautoscaler}} wants",
                    ),
                    query(
                        f"{autoscaler}spec_max_replicas{{{SPACE}}}",
                        "{{horizontalpodautoscaler}} may have",
                    ),
                ),
                graph(
                    "Deployments: replicas missing",
                    "Replicas that a deployment should have and that are not available.",
                    "none",
                    query(
                        f"kube_deployment_spec_replicas{{{SPACE}}}"
                        f" - kube_deployment_status_replicas_available{{{SPACE}}}",
                        "{{namespace}}/{{deployment}}",
                    ),
                ),
                graph(
                    "GPUs",
                    "What pods ask for beside what the nodes can give; more stays Pending.",
                    "none",
                    query("site:kube_gpu_requested:sum", "asked for"),
                    query("site:kube_gpu_allocatable:sum", "allocatable"),
                ),
            ],
            "Pods and nodes": [
                graph(
                    "Pods by phase",
                    "All pods of the chosen namespaces.",
                    "none",
                    query(f"sum by (phase) (kube_pod_status_phase{{{SPACE}}})", "{{phase}}"),
                ),
                graph(
                    "Container restarts, last hour",
                    "Restarts within the hour before, by pod.",
                    "none",
                    query(
                        "sum by (namespace, pod) "
                        f"(increase(kube_pod_container_status_restarts_total{{{SPACE}}}[1h]))",
                        "{{namespace}}/{{pod}}",
                    ),
                ),
                graph(
                    "Nodes that are short of something",
                    "1 for a node under memory, disk or process pressure.",
                    "none",
                    query(
                        "sum by (node, condition) "
                        f'(kube_node_status_condition{{{KSM}, condition=~".*Pressure",'
                        ' status="true"})',
                        "{{node}} {{condition}}",
                    ),
                ),
            ],
        },
    )


CARDS = 'job="dcgm", instance=~"$instance"'
CARD = "{{instance}} GPU {{gpu}}"


def gpu() -> Json:
    """The workers' GPUs, as dcgm-exporter's default counters tell them."""
    return dashboard(
        "t2v-gpu",
        "T2V / GPU",
        "The workers' GPUs, by dcgm-exporter with its default counters.",
        [chooser("instance", "Worker", 'label_values(up{job="dcgm"}, instance)')],
        {
            "Use": [
                graph(
                    "Busy",
                    "Share of the time in which the GPU ran something.",
                    "percent",
                    query("DCGM_FI_DEV_GPU_UTIL{" + CARDS + "}", CARD),
                    top=100,
                ),
                graph(
                    "Memory used",
                    "Share of the GPU's memory; from 97 % on GpuMemoryAlmostFull.",
                    "percentunit",
                    query('instance_gpu:dcgm_fb_used:ratio{instance=~"$instance"}', CARD),
                    top=1,
                ),
                graph(
                    "Memory used, in bytes",
                    "The GPU's memory that is taken, most of it by the resident model.",
                    "mbytes",
                    query("DCGM_FI_DEV_FB_USED{" + CARDS + "}", CARD),
                ),
                graph(
                    "Memory busy",
                    "Share of the time in which the GPU's memory was read or written.",
                    "percent",
                    query("DCGM_FI_DEV_MEM_COPY_UTIL{" + CARDS + "}", CARD),
                    top=100,
                ),
                graph(
                    "Engines busy",
                    "Engines of the service that work on a job, to compare with the GPUs.",
                    "none",
                    query('sum(t2v_engines_busy{job="wan22-service"})', "busy"),
                ),
                graph(
                    "Clock",
                    "Clock of the streaming multiprocessors.",
                    "hertz",
                    query("DCGM_FI_DEV_SM_CLOCK{" + CARDS + "} * 1e6", CARD),
                ),
            ],
            "Health": [
                graph(
                    "Temperature",
                    "From 85 °C on GpuTemperatureHigh.",
                    "celsius",
                    query("DCGM_FI_DEV_GPU_TEMP{" + CARDS + "}", CARD),
                ),
                graph(
                    "Power",
                    "What the GPU draws.",
                    "watt",
                    query("DCGM_FI_DEV_POWER_USAGE{" + CARDS + "}", CARD),
                ),
                graph(
                    "Last XID",
                    "Number of the last error that the driver reported; 0 is none.",
                    "none",
                    query("DCGM_FI_DEV_XID_ERRORS{" + CARDS + "}", CARD),
                ),
                graph(
                    "PCIe replays",
                    "Transfers a second that the bus had to repeat.",
                    "ops",
                    query(
                        "rate(DCGM_FI_DEV_PCIE_REPLAY_COUNTER{" + CARDS + "}[$__rate_interval])",
                        CARD,
                    ),
                ),
                graph(
                    "Power, averaged",
                    "What the GPU has drawn over the last minutes, from its counter of energy.",
                    "watt",
                    query(
                        "rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{"
                        + CARDS
                        + "}[$__rate_interval]) / 1000",
                        CARD,
                    ),
                ),
            ],
        },
    )


def files() -> dict[str, str]:
    """File name to content."""
    boards = [service(), gpu(), hosts(), storage(), cluster()]
    return {
        f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        for board in boards
    }


def main() -> None:
    """Write the files."""
    folder = Path(__file__).with_name("dashboards")
    folder.mkdir(exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    main()
