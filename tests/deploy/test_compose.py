"""The compose files against the published schema, and against what they mount, limit and call."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from support.deployment import DEPLOY, load_command, load_yaml

from quire.config import ServeSettings

FOLDER = DEPLOY / "compose"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    (compose,) = load_yaml(FOLDER / "compose.yaml")
    found: dict[str, Any] = compose["services"]
    assert set(found) == {"quire", "prometheus", "grafana"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema_of_the_compose_specification(path: Any) -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    (compose,) = load_yaml(path)
    jsonschema.validate(compose, json.loads(schema.read_text()))


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_images_of_others_have_a_version(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        assert services[name]["image"].rpartition(":")[2].lstrip("v")[0].isdigit()
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_what_is_mounted_from_the_repository_exists(services: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    ours = [source for source in mounted if source.startswith(".")]
    assert len(ours) == 3
    for source in ours:
        assert (FOLDER / source).resolve().exists(), f"{source} does not exist"


def test_prometheus_and_grafana_find_each_other(services: dict[str, Any]) -> None:
    (prometheus,) = load_yaml(DEPLOY / "prometheus" / "prometheus.yml")
    targets = [target for job in prometheus["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    assert targets == ["quire:8000"]
    (source,) = load_yaml(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    assert [entry["url"] for entry in source["datasources"]] == ["http://prometheus:9090"]
    (dashboards,) = load_yaml(DEPLOY / "grafana" / "provisioning" / "dashboards" / "quire.yml")
    folder = dashboards["providers"][0]["options"]["path"]
    assert [volume for volume in services["grafana"]["volumes"] if f":{folder}/quire.json:ro" in volume]


def test_settings_of_the_server_exist(services: dict[str, Any]) -> None:
    quire = services["quire"]
    example = (FOLDER / "quire.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in example if line and not line.startswith("#"))
    (cuda,) = load_yaml(FOLDER / "compose.cuda.yaml")
    given |= cuda["services"]["quire"]["environment"] | quire["environment"]
    settings = load_command(["quire", "serve"], given)
    assert isinstance(settings, ServeSettings)
    # What drains has so long, and then 30 s to end: docs/reliability.md.
    assert int(quire["stop_grace_period"].removesuffix("s")) >= settings.shutdown_timeout + 30
