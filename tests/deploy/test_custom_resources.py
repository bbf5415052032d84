"""Resources of others than Kubernetes itself.

No package carries their schemas, so these are the fields that the published definitions require and allow, written down
by hand: InferencePool of the Gateway API Inference Extension v1.6.0, InferenceObjective of llm-d-router v0.10.0,
HTTPRoute of the Gateway API v1, ServiceMonitor v1 of the Prometheus operator, and cert-manager's v1.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from support.manifests import FOLDER, Manifest, written

from quire.gateway.rest import _OPEN_PATHS


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


NAME = {"type": "string", "minLength": 1, "maxLength": 253}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "maxLength": 63}}
REFERENCE = closed({"name": NAME}, {"group": {"type": "string"}, "kind": {"type": "string"}})

SPECS = {
    ("inference.networking.k8s.io/v1", "InferencePool"): closed(
        {
            "selector": closed({"matchLabels": LABELS}),
            "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": closed({"number": PORT})},
            "endpointPickerRef": closed(
                {"name": NAME, "port": closed({"number": PORT})},
                {"group": {}, "kind": {}, "failureMode": {"enum": ["FailOpen", "FailClose"]}},
            ),
        },
        {"appProtocol": {"enum": ["http", "kubernetes.io/h2c"]}},
    ),
    ("llm-d.ai/v1alpha2", "InferenceObjective"): closed({"poolRef": REFERENCE}, {"priority": {"type": "integer"}}),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): closed(
        {
            "parentRefs": {"type": "array", "minItems": 1, "items": REFERENCE},
            "rules": {
                "type": "array",
                "items": closed(
                    {"backendRefs": {"type": "array", "minItems": 1, "items": REFERENCE}},
                    {
                        "matches": {"items": closed({"path": closed({"type": {"const": "PathPrefix"}, "value": {}})})},
                        "timeouts": closed({}, {"request": {"pattern": r"^\d+s$"}}),
                    },
                ),
            },
        },
        {"hostnames": {"type": "array"}},
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): closed(
        {
            "selector": closed({"matchLabels": LABELS}),
            "endpoints": {"items": closed({"port": NAME, "path": {}, "interval": {"pattern": r"^\d+s$"}})},
        }
    ),
    ("cert-manager.io/v1", "Issuer"): {
        "oneOf": [closed({"selfSigned": closed({})}), closed({"ca": closed({"secretName": NAME})})]
    },
    ("cert-manager.io/v1", "Certificate"): closed(
        {"secretName": NAME, "issuerRef": REFERENCE, "commonName": NAME},
        {
            "isCA": {"type": "boolean"},
            "dnsNames": {"type": "array", "minItems": 1},
            "usages": {"items": {"enum": ["server auth", "client auth"]}},
            "privateKey": closed({"algorithm": {"enum": ["ECDSA", "RSA", "Ed25519"]}, "size": {"type": "integer"}}),
        },
    ),
}

CUSTOM = [manifest for _, manifest in written() if (manifest["apiVersion"], manifest["kind"]) in SPECS]


@pytest.mark.parametrize("manifest", CUSTOM, ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}")
def test_fields(manifest: Manifest) -> None:
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(manifest["spec"], SPECS[manifest["apiVersion"], manifest["kind"]])


def test_each_kind_is_there() -> None:
    assert {(manifest["apiVersion"], manifest["kind"]) for manifest in CUSTOM} == set(SPECS)


def by_kind(kind: str) -> Manifest:
    (found,) = [manifest for _, manifest in written() if manifest["kind"] == kind]
    return found


def test_route_leads_to_the_pool_and_its_picker() -> None:
    pool = by_kind("InferencePool")
    (backend,) = by_kind("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    group = pool["apiVersion"].split("/")[0]
    assert backend == {"group": group, "kind": "InferencePool", "name": pool["metadata"]["name"]}
    assert by_kind("InferenceObjective")["spec"]["poolRef"] == backend
    picker = pool["spec"]["endpointPickerRef"]
    services = {each["metadata"]["name"]: each for _, each in written() if each["kind"] == "Service"}
    assert picker["port"]["number"] in [port["port"] for port in services[picker["name"]]["spec"]["ports"]]
    (deployment,) = [
        each for _, each in written() if each["kind"] == "Deployment" and each["metadata"]["name"] == picker["name"]
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert f"--pool-name={pool['metadata']['name']}" in container["args"]
    assert f"--grpc-port={picker['port']['number']}" in container["args"]


def test_paths_that_probes_and_scrapers_ask_need_no_key() -> None:
    (endpoint,) = by_kind("ServiceMonitor")["spec"]["endpoints"]
    assert {endpoint["path"], "/health", "/version"} <= _OPEN_PATHS


def test_scrape_annotations_name_the_server() -> None:
    base = (FOLDER / "base/deployment.yaml").read_text()
    assert 'prometheus.io/port: "8000"' in base
    assert "prometheus.io/path: /metrics" in base
