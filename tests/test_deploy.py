"""What the deployment files name, exists: paths, ports, commands, settings, probes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser
import pytest
import yaml
from typer.main import get_command

from twotower.cli.app import app
from twotower.cli.options import DEFAULT_CONFIG
from twotower.config import Project, load_project
from twotower.runtime.settings import RuntimeSettings
from twotower.serving.metric_definitions import DEFINITIONS
from twotower.serving.routes import ROUTES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
OPEN_PATHS = {route.path for route in ROUTES if route.scope == "open" and route.method == "GET"}


def schema(name: str) -> Any:
    return json.loads((ROOT / "tests" / "schemas" / f"{name}.json").read_text())


@cache
def project() -> Project:
    return load_project(MANIFESTS / "twotower.toml")


def port_of(command: list[str]) -> int | None:
    """The port that a container's command listens on, by the project's file."""
    ports = {"serve": project().serving.port, "collect": project().collector.port}
    return ports.get(command[0])


def check_command(words: list[str]) -> None:
    """Refuse what the command line would refuse; nothing is run."""
    command: Any = get_command(app)
    name: str | None = "twotower"
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(command.context_class(command), words)
    command.make_context(name, list(words))


def drained_s(command: list[str]) -> float:
    """The longest that a drained stop may take, by the project's file."""
    serving, runtime = project().serving, project().runtime
    return {
        "serve": serving.drain_delay_s + serving.drain_timeout_s,
        "collect": project().collector.drain_timeout_s,
        "up": len(runtime.processes) * runtime.stop_timeout_s,
    }[command[0]]


# -- the images

INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$")


@cache
def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name of a stage -> what it is made from, and its instructions."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            word, rest = match.groups()
            if word == "FROM":
                source, _, name = rest.split()
                found[name] = (source, [])
            else:
                found[name][1].append((word, rest))
    return found


def instructions(stage: str, word: str) -> list[str]:
    """Those of a stage and of the stages it is made from, the first of these first."""
    source, own = stages()[stage]
    before = instructions(source, word) if source in stages() else []
    return before + [rest for found, rest in own if found == word]


def test_the_dockerfile_has_no_faults_that_a_linter_knows() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_what_the_images_copy_is_in_the_build_context() -> None:
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = instructions("source", "COPY")
    assert len(sources) == 2
    for line in sources:
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in allowed
    for stage in ("serve", "learn"):
        (copied,) = re.findall(r"--from=(\S+) (\S+) (\S+)", " ".join(instructions(stage, "COPY")))
        assert copied[0] in stages()
        assert copied[1] == copied[2]  # an environment is not moved: its scripts name their folder


def extras(name: str, table: dict[str, list[str]]) -> set[str]:
    """The packages that an extra brings, other extras of ours followed."""
    found = set()
    for requirement in table[name]:
        if match := re.match(r"twotower\[(.+)\]", requirement):
            found |= {inner for extra in match[1].split(",") for inner in extras(extra, table)}
        else:
            found.add(re.split(r"[<>=!;\[ ]", requirement)[0])
    return found


def test_the_serving_image_is_free_of_torch_and_the_other_has_its_version() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = metadata["optional-dependencies"]
    installed: dict[str, set[str]] = {"serve": set(), "learn": set()}
    for stage, packages in installed.items():
        commands = " ".join(instructions(f"build-{stage}", "RUN"))
        for name in re.findall(r"'\.\[([\w,]+)\]'", commands)[0].split(","):
            packages |= extras(name, table)
    assert not {"torch", "polars", "pyarrow"} & installed["serve"]
    assert {"fastapi", "redis"} <= installed["serve"]
    assert {"torch", "numba", "apscheduler"} <= installed["learn"]
    assert "torch==" not in " ".join(instructions("build-serve", "RUN"))
    (version,) = re.findall(r"torch==(\S+)", " ".join(instructions("build-learn", "RUN")))
    (wanted,) = [r for r in table["train"] if r.startswith("torch")]
    assert f">={version.rpartition('.')[0]}" in wanted
    for base, _ in stages().values():
        if match := re.fullmatch(r"python:(3\.\d+)-slim-\w+", base):
            classifier = f"Programming Language :: Python :: {match[1]}"
            assert classifier in metadata["classifiers"]


@pytest.mark.parametrize("stage", ["serve", "learn"])
def test_an_image_runs_a_command_of_ours_as_nobody_in_particular(stage: str) -> None:
    assert instructions(stage, "ENTRYPOINT") == ['["twotower"]']
    command = json.loads(instructions(stage, "CMD")[-1])
    check_command(command)
    assert instructions(stage, "USER") == ["10001:10001"]
    (folder,) = instructions(stage, "VOLUME")
    assert folder == str(project().data_path)


def test_the_image_exposes_what_the_settings_say() -> None:
    exposed = {int(port) for line in instructions("serve", "EXPOSE") for port in line.split()}
    assert exposed == {project().serving.port, project().collector.port}


# -- compose


@cache
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_compose_file_follows_its_schema() -> None:
    jsonschema.Draft201909Validator(schema("compose")).validate(compose())


@pytest.mark.parametrize("name", ["serve", "collect", "learn"])
def test_a_composed_service_is_what_the_settings_say(name: str) -> None:
    service = compose()["services"][name]
    image, _, version = service["image"].partition(":")
    stage = image.removeprefix("twotower-")
    assert stage in stages()
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if "build" in service:
        assert service["build"]["target"] == stage
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    check_command(service["command"])
    port = port_of(service["command"])
    assert service.get("ports", []) == ([f"127.0.0.1:{port}:{port}"] if port else [])
    assert int(service["stop_grace_period"].removesuffix("s")) > drained_s(service["command"])
    if port:
        (url,) = re.findall(r"http://127.0.0.1:(\d+)(/\w+)", service["healthcheck"]["test"][-1])
        assert (int(url[0]), url[1] in OPEN_PATHS) == (port, True)
        compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_what_compose_mounts_is_there() -> None:
    named = set(compose()["volumes"])
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            assert source in named or (DEPLOY / source).exists(), volume
            if source == "data":
                assert target == str(project().data_path)
            if source.endswith(".toml"):
                assert target == f"{instructions('serve', 'WORKDIR')[-1]}/{DEFAULT_CONFIG}"


# -- Kubernetes


def manifests() -> dict[str, list[Any]]:
    """The documents of every file but Kustomize's own."""
    return {
        path.name: list(yaml.safe_load_all(path.read_text()))
        for path in sorted(MANIFESTS.glob("*.yaml"))
        if path.name != "kustomization.yaml"
    }


DOCUMENTS = [document for documents in manifests().values() for document in documents]
DEPLOYMENTS = {d["metadata"]["name"]: d for d in DOCUMENTS if d["kind"] == "Deployment"}
SERVICES = [d for d in DOCUMENTS if d["kind"] == "Service"]


def is_valid(document: Any) -> bool:
    known = schema("kubernetes")
    root = {
        "$ref": f"#/definitions/{known['kinds'][document['kind']]}",
        "definitions": known["definitions"],
    }
    return bool(jsonschema.Draft7Validator(root).is_valid(document))


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_a_manifest_follows_its_schema_which_knows_typing_errors(number: int) -> None:
    document = json.loads(json.dumps(DOCUMENTS[number]))
    assert is_valid(document)
    document["spec"]["typo"] = 1
    assert not is_valid(document)


def test_kustomize_names_every_file_and_every_image() -> None:
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == sorted(manifests())
    (generated,) = kustomization["configMapGenerator"]
    assert all((MANIFESTS / name).is_file() for name in generated["files"])
    used = {container_of(d)["image"] for d in DEPLOYMENTS.values()}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {image["name"]: image["newTag"] for image in kustomization["images"]} == dict.fromkeys(
        used, version
    )
    claims = {d["metadata"]["name"] for d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    for deployment in DEPLOYMENTS.values():
        volumes = {v["name"]: v for v in pod_of(deployment)["volumes"]}
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] in claims
        assert volumes["project"]["configMap"]["name"] == generated["name"]


def pod_of(deployment: Any) -> Any:
    return deployment["spec"]["template"]["spec"]


def container_of(deployment: Any) -> Any:
    (container,) = pod_of(deployment)["containers"]
    return container


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_is_what_the_image_and_the_settings_say(name: str) -> None:
    pod, container = pod_of(DEPLOYMENTS[name]), container_of(DEPLOYMENTS[name])
    stage = container["image"].removeprefix("twotower-")
    check_command(container["args"])
    assert f"{pod['securityContext']['runAsUser']}" == instructions(stage, "USER")[0].split(":")[0]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["data"] == str(project().data_path)
    assert mounts["project"] == f"{instructions(stage, 'WORKDIR')[-1]}/{DEFAULT_CONFIG}"
    assert pod["terminationGracePeriodSeconds"] > drained_s(container["args"])
    port = port_of(container["args"])
    assert [p["containerPort"] for p in container.get("ports", [])] == ([port] if port else [])
    probes = [container[key]["httpGet"] for key in container if key.endswith("Probe")]
    assert len(probes) == (3 if port else 0)
    for probe in probes:
        assert probe["path"] in OPEN_PATHS
        assert probe["port"] == container["ports"][0]["name"]


def test_the_liveness_of_a_pod_does_not_depend_on_a_generation() -> None:
    """A server without one answers 503 to /readyz: killing it would never end."""
    for deployment in DEPLOYMENTS.values():
        container = container_of(deployment)
        probes = {name: container[name]["httpGet"]["path"] for name in container
                  if name in ("livenessProbe", "startupProbe")}  # fmt: skip
        assert probes.get("livenessProbe", "/healthz") == "/healthz"
        assert probes.get("startupProbe", "/healthz") in ("/healthz", "/startupz")


def test_the_server_passes_events_on_to_where_the_collector_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_pod = container_of(DEPLOYMENTS["twotower-serve"])["env"]
    composed = compose()["services"]["serve"]["environment"]
    services = {service["metadata"]["name"] for service in SERVICES}
    for environment, known in (
        ({entry["name"]: entry["value"] for entry in in_pod}, services),
        (composed, set(compose()["services"])),
    ):
        assert len(environment) == 1
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        host = load_project(MANIFESTS / "twotower.toml").collector.host
        assert host in known
        assert "collect" in host


def test_the_pods_that_answer_grow_with_the_load_and_never_all_leave() -> None:
    (scaler,) = (d["spec"] for d in DOCUMENTS if d["kind"] == "HorizontalPodAutoscaler")
    (budget,) = (d["spec"] for d in DOCUMENTS if d["kind"] == "PodDisruptionBudget")
    target = scaler["scaleTargetRef"]
    deployment = DEPLOYMENTS[target["name"]]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], "Deployment")
    assert "replicas" not in deployment["spec"]  # it would undo what the load asked for
    assert budget["selector"] == deployment["spec"]["selector"]
    assert 1 <= budget["maxUnavailable"] < scaler["minReplicas"] < scaler["maxReplicas"]
    (metric,) = (one["pods"] for one in scaler["metrics"])
    assert DEFINITIONS[metric["metric"]["name"]].kind == "gauge"
    (rule,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yml").read_text())["rules"]
    assert rule["name"]["matches"] == metric["metric"]["name"]
    labels = set(rule["resources"]["overrides"])
    assert labels == {"namespace", "pod"}
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'pod="a"')
    for expression in (rule["seriesQuery"], query):
        promql_parser.parse(expression)
        assert set(re.findall(r"twotower_\w+", expression)) == {metric["metric"]["name"]}
    settings = project().serving
    bound = settings.workers * settings.max_in_flight
    assert 0 < float(metric["target"]["averageValue"]) < bound  # before anybody is refused


def test_one_process_writes_the_event_log_and_one_learns() -> None:
    for name in ("twotower-collect", "twotower-learn"):
        spec = DEPLOYMENTS[name]["spec"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    rolling = DEPLOYMENTS["twotower-serve"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    started = [container_of(d)["args"][0] for d in DEPLOYMENTS.values()]
    assert sorted([*started, *project().runtime.processes]) == sorted(
        ["up", *RuntimeSettings().processes]
    )


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service["metadata"]["name"])
def test_a_service_leads_to_a_port_of_its_pods(service: Any) -> None:
    deployment = DEPLOYMENTS[service["metadata"]["name"]]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == deployment["spec"]["selector"]["matchLabels"]
    (port,) = service["spec"]["ports"]
    (exposed,) = container_of(deployment)["ports"]
    assert (port["targetPort"], port["port"]) == (exposed["name"], exposed["containerPort"])


# -- what the documents say to type


def test_commands_for_containers_name_what_exists() -> None:
    text = (ROOT / "docs" / "operations.md").read_text() + (DEPLOY / "Dockerfile").read_text()
    builds = re.findall(r"docker build --file (\S+) --target (\w+) --tag ([\w-]+):", text)
    assert len(builds) == 4
    for file, target, tag in builds:
        assert (ROOT / file).is_file()
        assert tag == f"twotower-{target}"
        assert target in stages()
    composed = re.findall(r"docker compose --file (\S+) run --rm (\w+) (.*)", text)
    assert composed
    for file, service, words in composed:
        assert (ROOT / file).is_file()
        assert service in compose()["services"]
        check_command(shlex.split(words))
    for folder in re.findall(r"kubectl apply --kustomize (\S+)", text):
        assert (ROOT / folder / "kustomization.yaml").is_file()
    for name, words in re.findall(r"kubectl exec .*deploy/(\S+) -- twotower (.*)", text):
        assert name in DEPLOYMENTS
        check_command(shlex.split(words))
    selectors = [pod_of(d)["nodeSelector"] for d in DEPLOYMENTS.values()]
    (label,) = re.findall(r"kubectl label node NODE (\S+)=true", text)
    assert selectors == [{label: "true"}] * len(DEPLOYMENTS)


RUNBOOK = re.findall(r"`twotower ([^`]+)`", (ROOT / "docs" / "runbook.md").read_text())


@pytest.mark.parametrize("command", sorted({" ".join(words.split()) for words in RUNBOOK}))
def test_the_command_line_takes_what_the_runbook_says(command: str) -> None:
    given = {"NAME": "g-000007", "D": "2022-05-02", "BAD_DAY": "2022-05-01", "TEXT": "known"}
    check_command([given.get(word, word) for word in shlex.split(command)])


def test_the_settings_that_runbook_and_alerts_name_exist() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    text += (DEPLOY / "prometheus" / "alerts.yml").read_text()
    named = {words for words in re.findall(r"`(\w+(?:\.\w+)+)(?: = [^`]*)?`", text)
             if hasattr(project(), words.split(".")[0])}  # fmt: skip
    assert len(named) >= 5
    for name in named:
        value: Any = project()
        for part in name.split("."):
            value = getattr(value, part)


def test_nothing_but_sources_is_sent_to_the_image_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    assert not any(fnmatch("examples", line[1:]) for line in lines if line.startswith("!"))
