"""Every alert fires when its fault is there, and only then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from promql import Samples, evaluate, sample

ROOT = Path(__file__).parents[1]
RULES = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())[
        "groups"
    ]
    for rule in group["rules"]
}
NOW_S = 1_800_000_000.0
Series = dict[str, tuple[float, float] | None]

HEALTHY: Series = {
    'up{job="twotower"}': (1, 1),
    'up{job="twotower-collect"}': (1, 1),
    'twotower_generation_info{generation="g-000007"}': (1, 1),
    "twotower_generation_staleness_seconds": (90_000, 93_600),
    'twotower_trainer_last_success_timestamp_seconds{kind="full"}': (NOW_S - 9e4, NOW_S - 9e4),
    'twotower_trainer_last_success_timestamp_seconds{kind="delta"}': (NOW_S - 2e3, NOW_S - 600),
    "twotower_events_accepted_total": (1_000_000, 1_100_000),
    'twotower_events_rejected_total{reason="invalid"}': (100, 110),
    'twotower_publish_total{kind="delta",result="ok"}': (40, 42),
    'twotower_publish_total{kind="delta",result="corrupt"}': (1, 1),
    'twotower_gate_passed{metric="finite",generation="live"}': (1, 1),
    'twotower_gate_passed{metric="coverage",generation="live"}': (0, 0),
    'twotower_gate_metric{metric="ann_recall_at_100",generation="live"}': (0.96, 0.96),
    'twotower_gate_bar{metric="ann_recall_at_100",generation="live"}': (0.95, 0.95),
    "twotower_ann_found_items_total": (0, 965),
    "twotower_ann_sampled_items_total": (0, 1000),
    'twotower_shed_requests_total{reason="deadline"}': (0, 3),
    'twotower_http_requests_total{route="/v1/retrieve",code="200"}': (0, 100_000),
    'twotower_http_requests_total{route="/v1/retrieve",code="503"}': (0, 3),
    "twotower_unknown_users_total": (0, 4_000),
    "twotower_retrieve_items_returned_count": (0, 100_000),
    "twotower_index_lost_searches_total": (7, 7),
    'twotower_profile_store_failures_total{reason="timeout"}': (7, 50),
    "twotower_join_lag_events": (200_000, 150_000),
    'twotower_unreadable_files{part="examples"}': (0, 0),
}

FAULTS: dict[str, Series] = {
    "TwotowerDown": {'up{job="twotower-collect"}': (1, 0)},
    "TwotowerNothingLive": {'twotower_generation_info{generation="g-000007"}': None},
    "TwotowerStale": {"twotower_generation_staleness_seconds": (170_000, 173_600)},
    "TwotowerDeltasStopped": {
        'twotower_trainer_last_success_timestamp_seconds{kind="delta"}': (NOW_S - 4e3, NOW_S - 4e3)
    },
    "TwotowerPublishRejected": {'twotower_publish_total{kind="delta",result="corrupt"}': (1, 2)},
    "TwotowerGateRefused": {
        'twotower_gate_passed{metric="coverage",generation="candidate"}': (0, 0)
    },
    "TwotowerAnnRecallLow": {"twotower_ann_found_items_total": (0, 940)},
    "TwotowerShedding": {'twotower_shed_requests_total{reason="deadline"}': (0, 300)},
    "TwotowerErrors": {
        'twotower_http_requests_total{route="/v1/retrieve",code="503"}': (0, 300),
    },
    "TwotowerUnknownUsersJump": {"twotower_unknown_users_total": (0, 20_000)},
    "TwotowerProfilesLost": {'twotower_profile_store_failures_total{reason="timeout"}': (7, 700)},
    "TwotowerIndexLost": {"twotower_index_lost_searches_total": (7, 8)},
    "TwotowerEventsRejected": {'twotower_events_rejected_total{reason="invalid"}': (100, 9_000)},
    "TwotowerJoinBehind": {"twotower_join_lag_events": (150_000, 200_000)},
    "TwotowerUnreadableFiles": {'twotower_unreadable_files{part="examples"}': (0, 1)},
}


def samples(today: Series) -> Samples:
    """What Prometheus holds, of one server that was healthy yesterday."""

    def held(series: Series) -> dict[Any, tuple[float, float]]:
        found = {}
        for text, values in series.items():
            name, labels = sample(text)
            if values is not None:
                found[name, labels | {("instance", "serve:8080")}] = values
        return found

    return Samples(NOW_S, held(HEALTHY | today), held(HEALTHY))


def firing(today: Series) -> set[str]:
    return {name for name, rule in RULES.items() if evaluate(rule, samples(today))}


def test_a_healthy_server_alarms_nobody() -> None:
    assert firing({}) == set()


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_fires_at_its_fault_and_at_no_other(alert: str) -> None:
    assert firing(FAULTS[alert]) == {alert}


def test_where_nothing_was_sampled_the_gates_recall_decides() -> None:
    silent: Series = {"twotower_ann_found_items_total": (0, 0)}
    silent["twotower_ann_sampled_items_total"] = (0, 0)
    assert firing(silent) == set()
    forced = 'twotower_gate_metric{metric="ann_recall_at_100",generation="live"}'
    assert firing({**silent, forced: (0.9, 0.9)}) == {"TwotowerAnnRecallLow"}
    assert firing({forced: (0.9, 0.9)}) == set()  # by now it is as it should be


def test_without_events_no_delta_is_missed() -> None:
    quiet: Series = {"twotower_events_accepted_total": (1_000_000, 1_000_000)}
    quiet['twotower_events_rejected_total{reason="invalid"}'] = (100, 100)
    assert firing({**FAULTS["TwotowerDeltasStopped"], **quiet}) == set()


def test_every_sample_is_one_that_some_rule_asks_for() -> None:
    asked = {word for rule in RULES.values() for word in re.findall(r"\b[a-z_]+\b", rule)}
    assert {sample(text)[0] for text in HEALTHY} <= asked
