"""The Kubernetes manifests, as kustomize renders them: against published schemas, and against Quire itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from support.deployment import load_command
from support.manifests import FOLDER, VARIANTS, Manifest, containers, pods, rendered, written

from quire.config import GatewaySettings, ServeSettings
from quire.settings import Settings

# Resources that Kubernetes itself does not know: test_custom_resources.py.
CUSTOM = {
    "monitoring.coreos.com",
    "inference.networking.k8s.io",
    "gateway.networking.k8s.io",
    "llm-d.ai",
    "cert-manager.io",
}
ENTRYPOINT = ["quire", "serve", "--host=0.0.0.0"]


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return rendered(request.param, tmp_path_factory.mktemp("kustomize"))


def own_containers(manifests: list[Manifest]) -> list[tuple[Mapping[str, Any], Mapping[str, Any], Settings]]:
    """Pod, container and settings of what runs Quire."""
    found = []
    for pod in pods(manifests):
        for container in containers(pod):
            if container["image"].startswith("quire:"):
                line = [*container.get("command", ENTRYPOINT), *container.get("args", [])]
                variables = {entry["name"]: entry.get("value", "from a secret") for entry in container.get("env", [])}
                found.append((pod, container, load_command(line, variables)))
    assert found
    return found


def test_published_schemas(manifests: list[Manifest]) -> None:
    version = kubernetes_validate.latest_version()
    for manifest in manifests:
        if manifest["apiVersion"].split("/")[0] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_names_of_objects_are_unique(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)


def test_every_pod_is_confined(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # A Service of the name quire would set QUIRE_PORT to a URL.
        assert pod["enableServiceLinks"] is False
        for container in containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_sockets_have_a_place(manifests: list[Manifest]) -> None:
    for _, container, _ in own_containers(manifests):
        variables = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert variables.get("TMPDIR", "/tmp") in mounted


def test_volumes_are_all_there(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        used = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert used == volumes


def test_nobody_is_served_without_a_key(manifests: list[Manifest]) -> None:
    for _, container, settings in own_containers(manifests):
        if isinstance(settings, (ServeSettings, GatewaySettings)):
            (key,) = [entry for entry in container["env"] if entry["name"] == "QUIRE_API_KEY"]
            assert not key["valueFrom"]["secretKeyRef"].get("optional", False)


def test_drain_has_the_time_it_takes(manifests: list[Manifest]) -> None:
    for pod, container, settings in own_containers(manifests):
        if isinstance(settings, (ServeSettings, GatewaySettings)):
            before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] >= before + settings.shutdown_timeout + 30


def test_probes_ask_what_exists_and_wait_long_enough(manifests: list[Manifest]) -> None:
    for _, container, settings in own_containers(manifests):
        if not isinstance(settings, (ServeSettings, GatewaySettings)):
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": settings.port, "grpc": settings.grpc_port}
        startup, readiness, liveness = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
        for probe in (startup, readiness, liveness):
            assert probe["httpGet"]["path"] in {"/health", "/version"}  # open paths: test_app_has_the_paths
            assert probe["httpGet"]["port"] == "http"
        assert startup["periodSeconds"] * startup["failureThreshold"] >= settings.startup_timeout
        # Not restarted while it restarts its own parts.
        assert liveness["periodSeconds"] * liveness["failureThreshold"] > 2 * settings.watchdog_timeout


def test_addresses_of_the_processes_meet(manifests: list[Manifest]) -> None:
    by_kind = {type(settings).__name__: settings for _, _, settings in own_containers(manifests)}
    if "SchedulerSettings" not in by_kind:
        assert set(by_kind) == {"ServeSettings"}
        return
    scheduler: Any = by_kind["SchedulerSettings"]
    executor: Any = by_kind["ExecutorSettings"]
    gateway: Any = by_kind["GatewaySettings"]
    assert scheduler.executors == [executor.listen]
    assert executor.model == gateway.model
    if scheduler.listen.startswith("unix:"):
        assert gateway.scheduler == scheduler.listen
        return
    host, _, port = gateway.scheduler.rpartition(":")
    assert scheduler.listen == f"0.0.0.0:{port}"
    (service,) = [each for each in manifests if each["kind"] == "Service" and each["metadata"]["name"] == host]
    assert [str(entry["port"]) for entry in service["spec"]["ports"]] == [port]
    for settings in (gateway, scheduler):
        assert settings.internal_tls_cert and settings.internal_tls_key and settings.internal_tls_ca
    (certificate,) = [
        each for each in manifests if each["metadata"]["name"] == "quire-internal" and "dnsNames" in each["spec"]
    ]
    assert host in certificate["spec"]["dnsNames"]


def test_selectors_find_the_pods(manifests: list[Manifest]) -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in manifests if each["kind"] == "Deployment"]
    for manifest in manifests:
        if manifest["kind"] in {"Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "InferencePool"}:
            selector = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), manifest["metadata"]["name"]


def test_every_file_belongs_to_a_kustomization() -> None:
    for path, _ in written():
        assert path.name in (path.parent / "kustomization.yaml").read_text(), path.relative_to(FOLDER)


def test_autoscaler_asks_for_what_the_adapter_gives(tmp_path: Path) -> None:
    (autoscaler,) = [each for _, each in written() if each["kind"] == "HorizontalPodAutoscaler"]
    (metric,) = [entry["pods"]["metric"]["name"] for entry in autoscaler["spec"]["metrics"]]
    adapter = (FOLDER / "components/autoscaling/prometheus-adapter-values.yaml").read_text()
    assert f"as: {metric}\n" in adapter
