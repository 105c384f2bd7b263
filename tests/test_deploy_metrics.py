"""Every metric that a rule, a panel or a document names is in `/metrics`, with those labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from collector_project import as_lines
from day_events import rows_over, shown
from serving_project import (
    UNKNOWN_USER,
    USERS,
    RunningServer,
    eventually,
    publish_marked,
    running_server,
    write_project,
)
from tiny_checkpoint import tiny_checkpoint
from twotower.data.event_log import EventLogSettings
from twotower.data.event_log.intake import Intake
from twotower.data.example_log.manifest import ExampleManifest, examples_path, write_manifest
from twotower.index.settings import IndexSettings
from twotower.publishing.delta import DeltaSpan
from twotower.publishing.delta_writing import write_delta
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore
from twotower.serving.collector_metrics import CollectorMetrics
from twotower.serving.metric_definitions import DEFINITIONS
from twotower.serving.retriever import Retriever
from twotower.serving.routes import ROUTES

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "twotower.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ADDED = {"instance", "job"}
"""Labels that Prometheus adds itself."""
Labels = dict[str, set[str]]


def live_day(folder: Path) -> Path:
    """A project in which everything has happened that has a number."""
    data_path = folder / "twotower-data"
    store = ModelStore(data_path)
    approximate = IndexSettings(engine="faiss_ivf")
    checkpoint = tiny_checkpoint(num_items=1100)
    store.activate(publish(checkpoint, store, index=approximate).name, force=True)
    publish_marked(store, 2)
    retriever = Retriever.open(data_path)
    span = DeltaSpan(first_offset=0, through_offset=1, newest_event_time_ms=1_800_000_000_000)
    write_delta(data_path, retriever.base, rows_over(retriever, users=USERS[:1]), span, now_ms=1)
    with Intake(data_path, EventLogSettings()) as intake:
        event = shown(1, USERS[0], USERS[1])
        intake.take(as_lines([event, event]) + b"no JSON\n", 1_800_000_000_000)
    examples_path(data_path).mkdir()
    write_manifest(
        examples_path(data_path), ExampleManifest(user_id_kind="int", item_id_kind="int")
    )
    nobody = '[serving.profiles]\nstore = "redis"\nurl = "redis://127.0.0.1:1/0"'
    return write_project(folder, more=nobody)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(live_day(tmp_path_factory.mktemp("deploy"))) as running:
        for user, city in ((USERS[0], "Lima"), (UNKNOWN_USER, "Atlantis")):
            running.ask("POST", "/v1/retrieve", {"user_id": user, "features": {"city": city}})
        running.ask("POST", "/v1/retrieve", {"user_id": 1}, X_Request_Timeout_Ms="0")
        eventually(lambda: running.metric("twotower_ann_recall_ratio"))
        yield running


@pytest.fixture(scope="module")
def exported(server: RunningServer) -> Labels:
    """Name of a sample -> its labels."""
    text = server.ask("GET", "/metrics").body.decode() + CollectorMetrics().render().decode()
    found: Labels = {"up": {"job"}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def selectors(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Every metric of a parsed expression, with the labels that it is asked by."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
    for child in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(node, child, None)) is not None:
            yield from selectors(inner)
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


def check(expression: str, exported: Labels) -> int:
    """Refuse an expression that does not parse, or asks for what is not there."""
    found = list(selectors(promql_parser.parse(expression)))
    for name, labels in found:
        assert name in exported, f"{name} is not exported"
        assert labels <= exported[name] | ADDED, f"{name} has labels {exported[name]}, not {labels}"
    grouped = {
        label.strip()
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        for label in labels.split(",")
    }
    known = ADDED.union(*(exported[name] for name, _ in found))
    assert grouped <= known, f"{grouped - known} are no labels of {expression}"
    return len(found)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported(rule: Any, exported: Labels) -> None:
    assert check(rule["expr"], exported) >= 1
    for name in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        known = {label for metric in re.findall(r"\w+", rule["expr"]) for label in
                 exported.get(metric, ())}  # fmt: skip
        assert name in known | ADDED


def test_the_rules_follow_their_schema() -> None:
    schema = json.loads((ROOT / "tests" / "schemas" / "prometheus-rules.json").read_text())
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    jsonschema.Draft7Validator(schema).validate(rules)
    rules["groups"][0]["rules"][0]["form"] = "2m"
    assert not jsonschema.Draft7Validator(schema).is_valid(rules)


def test_every_alert_has_its_section_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_prometheus_asks_where_server_and_collector_answer() -> None:
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert all((PROMETHEUS / name).is_file() for name in settings["rule_files"])
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["prometheus"]["volumes"])
    for job in settings["scrape_configs"]:
        assert job["metrics_path"] in {route.path for route in ROUTES}
        (target,) = job["static_configs"][0]["targets"]
        service, port = target.split(":")
        assert compose[service]["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert str(Path(job["authorization"]["credentials_file"]).parent) == mounts["metrics-key"]
    asked = {job for rule in ALERTS for jobs in re.findall(r'up{job=~?"([^"]*)"}', rule["expr"])
             for job in jobs.split("|")}  # fmt: skip
    assert asked == {job["job_name"] for job in settings["scrape_configs"]}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_what_is_exported(panel: Any, exported: Labels) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m")
        assert check(expression, exported) >= 1
        of_expression = [label for metric in re.findall(r"\w+", expression)
                         for label in exported.get(metric, ())]  # fmt: skip
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= {*of_expression, *ADDED}


def test_panels_have_their_own_place_and_number() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not taken & cells
        taken |= cells


def test_the_document_names_every_metric_and_no_other(exported: Labels) -> None:
    of_collector = {family.name for family in CollectorMetrics().collect()}
    text = (ROOT / "docs" / "operations.md").read_text().split("## Metrics")[1]
    text = text.split("`/metrics` of `twotower collect`")[0]
    documented: Labels = {}
    for row in re.findall(r"^\| (`.*?) \| (.*?) \|", text, re.MULTILINE):
        names, labels = (set(re.findall(r"`([\w*]+)`", cell)) for cell in row)
        documented |= dict.fromkeys(names, labels)
    assert documented.pop("process_*") == set()
    ours = {name: labels - {"le"} for name, labels in exported.items() if "twotower" in name}
    families = {re.sub(r"_(bucket|sum|count)$", "", name): labels for name, labels in ours.items()
                if not (name.endswith(("_sum", "_count")) and f"{name.rpartition('_')[0]}_bucket"
                        in ours)}  # fmt: skip
    declared = {name: set(known.labels) for name, known in DEFINITIONS.items()}
    ours = declared | families  # some have not happened here
    assert ours.keys() - documented.keys() <= of_collector
    assert documented == {name: labels for name, labels in ours.items() if name in documented}
