"""What `/metrics` says over several workers."""

from __future__ import annotations

import os

from prometheus_client.parser import text_string_to_metric_families

from twotower.serving.metrics import Metrics
from twotower.serving.metrics_page import render_metrics
from twotower.serving.shared_memory import CounterBlock, SharedMemory
from twotower.serving.status import WorkerState, WorkerStatus


def make(num_workers: int) -> tuple[SharedMemory, list[Metrics]]:
    memory = SharedMemory(num_workers)
    return memory, [Metrics(CounterBlock(memory.counters(slot))) for slot in range(num_workers)]


def samples(memory: SharedMemory, now_s: float = 0.0) -> dict[tuple[str, ...], float]:
    """Sample name and label values, sorted by label -> value."""
    text = render_metrics(memory, now_s).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_summed_over_workers() -> None:
    memory, (one, other) = make(2)
    for metrics, code in ((one, 200), (other, 200), (other, 422)):
        metrics.request_began()
        metrics.request_ended("/v1/retrieve", code, 0.003)
    other.request_began()
    found = samples(memory)
    assert found["twotower_http_requests_total", "200", "/v1/retrieve"] == 2
    assert found["twotower_http_requests_total", "422", "/v1/retrieve"] == 1
    assert found["twotower_http_request_duration_seconds_count", "/v1/retrieve"] == 3
    assert abs(found["twotower_http_request_duration_seconds_sum", "/v1/retrieve"] - 0.009) < 1e-9
    assert found["twotower_http_request_duration_seconds_bucket", "0.0025", "/v1/retrieve"] == 0
    assert found["twotower_http_request_duration_seconds_bucket", "0.005", "/v1/retrieve"] == 3
    assert found["twotower_inflight_requests",] == 1


def test_a_replaced_worker_keeps_counts_and_forgets_what_was_in_flight() -> None:
    memory, (metrics,) = make(1)
    metrics.request_began()
    metrics.request_ended("/healthz", 200, 0.001)
    metrics.request_began()
    again = Metrics(CounterBlock(memory.counters(0)))
    again.request_began()
    again.request_ended("/healthz", 200, 0.001)
    found = samples(memory)
    assert found["twotower_inflight_requests",] == 0
    assert found["twotower_http_requests_total", "200", "/healthz"] == 2


def test_a_value_at_a_limit_is_inside_its_bucket() -> None:
    memory, (metrics,) = make(1)
    metrics.stage("ann", 0.001)
    found = samples(memory)
    assert found["twotower_retrieve_stage_duration_seconds_bucket", "0.0005", "ann"] == 0
    assert found["twotower_retrieve_stage_duration_seconds_bucket", "0.001", "ann"] == 1
    metrics.stage("ann", 1e9)
    assert samples(memory)["twotower_retrieve_stage_duration_seconds_bucket", "+Inf", "ann"] == 2


def test_a_publish_is_one_publish_however_many_workers_saw_it() -> None:
    memory, workers = make(3)
    for metrics in workers:
        metrics.publish_ended("full", "ok")
        metrics.publish_phase("full", "load", 0.2)
    workers[1].publish_ended("full", "corrupt")
    found = samples(memory)
    assert found["twotower_publish_total", "full", "ok"] == 1
    assert found["twotower_publish_total", "full", "corrupt"] == 1
    assert found["twotower_publish_duration_seconds_count", "full", "load"] == 1


def test_answers_count_items_scores_and_what_degraded_them() -> None:
    memory, (one, other) = make(2)
    one.answered(3, 0.5, [])
    one.answered(0, None, ["unknown_user"])
    other.answered(1, -0.5, ["unknown_user", "feature:city=unseen", "feature:age=missing"])
    other.answered(1, 0.5, [])
    found = samples(memory)
    assert found["twotower_retrieve_items_returned_count",] == 4
    assert found["twotower_retrieve_items_returned_sum",] == 5
    assert found["twotower_score_bucket", "+Inf"] == 3  # negative limits: no sum in this format
    assert found["twotower_unknown_user_ratio",] == 0.5
    assert found["twotower_unknown_users_total",] == 2
    assert found["twotower_feature_oov_total", "city"] == 1
    assert ("twotower_feature_oov_total", "age") not in found


def status(sequence: int, state: WorkerState = "serving") -> WorkerStatus:
    return WorkerStatus(
        pid=os.getpid(),
        state=state,
        generation=f"g-00000{sequence}",
        sequence=sequence,
        manifest="abc",
        created_s=10.0 * sequence,
        activated_s=20.0 * sequence,
        cut_s=5.0 * sequence,
    )


def test_the_generation_is_that_of_the_worker_furthest_behind() -> None:
    memory, _ = make(3)
    memory.status(0).write(status(4))
    memory.status(1).write(status(3))
    memory.status(2).write(status(1, "restarting"))
    found = samples(memory, now_s=100.0)
    assert found["twotower_generation_info", "", "g-000003", "abc"] == 1
    assert found["twotower_generation_created_timestamp_seconds",] == 30
    assert found["twotower_generation_activated_timestamp_seconds",] == 60
    assert found["twotower_generation_staleness_seconds",] == 85
    assert found["process_resident_memory_bytes",] > 0


def test_what_never_happened_is_0_where_that_can_be_said() -> None:
    assert samples(SharedMemory(1)) == {
        ("twotower_unknown_users_total",): 0,
        ("twotower_index_lost_searches_total",): 0,
        ("twotower_ann_sampled_items_total",): 0,
        ("twotower_ann_found_items_total",): 0,
    }


def test_the_recall_is_that_of_all_samples_of_all_workers() -> None:
    memory, (one, other) = make(2)
    one.recall_sampled(20, 20)
    other.recall_sampled(70, 80)
    assert samples(memory)["twotower_ann_recall_ratio",] == 0.9


def test_searches_that_were_lost_are_counted_once() -> None:
    memory, (one, other) = make(2)
    for metrics, told in ((one, (2, 5, 5)), (other, (1,))):
        for num_lost in told:
            metrics.searches_lost("g-000001", num_lost)
    assert samples(memory)["twotower_index_lost_searches_total",] == 6
    one.searches_lost("g-000002", 1)
    assert samples(memory)["twotower_index_lost_searches_total",] == 7
