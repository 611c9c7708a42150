"""Holds deploy's Kubernetes objects against the API's own schemas, and their arithmetic against the settings that they carry.

    manifests.py [KUSTOMIZE]      KUSTOMIZE: the program; without it kustomize's plain files are read as they stand

Needs PyYAML, kubernetes-validate and helm-python-sdk, which is Helm's own engine. Fails after it has said all that is wrong.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/jobcast"
# The oldest that the chart takes, and the newest that there are schemas for.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
# No part of Kubernetes: the Prometheus Operator's.
FOREIGN = {"ServiceMonitor"}
ANONYMOUS = {"auth": {"allow_anonymous": True}}

GOOD_VALUES = {
    "the defaults": {"settings": ANONYMOUS},
    "all that can be switched on": {
        "image": {"repository": "registry.example.org/jobcast", "tag": "9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "settings": {**ANONYMOUS, "source": {"kind": "redis"}, "http": {"max_connections": 500}},
        "database": {"secretName": "redis", "secretKey": "address"},
        "shutdown": {"preStop": 7, "grace": 20, "drain": 90},
        "ingress": {"enabled": True, "className": "nginx", "path": "/live", "tls": [{"hosts": ["a.example"], "secretName": "tls"}]},
        "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9, "subscribers": 400},
        "networkPolicy": {"enabled": True, "monitoringNamespaces": ["a", "b"], "databasePorts": [6379, 26379]},
        "serviceMonitor": {"enabled": True, "interval": "5s"},
        "podAnnotations": {"example.org/owner": "web"},
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "web", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}},
    },
    "all that can be switched off": {
        "settings": ANONYMOUS,
        "database": {"secretName": ""},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "shutdown": {"preStop": 1, "grace": 0, "drain": 0},
    },
    "SQLite on a volume": {
        "settings": {**ANONYMOUS, "source": {"kind": "sqlite"}},
        "replicas": 1,
        "persistence": {"enabled": True, "size": "5Gi", "storageClass": "fast"},
    },
}

BAD_VALUES = {
    "no replica": {"replicas": 0},
    "a value that there is not": {"replica": 2},
    "a source that there is not": {"settings": {"source": {"kind": "mysql"}}},
    "times of leaving in two places": {"settings": {"shutdown": {"drain": "1h"}}},
    "a listener that no probe asks": {"settings": {"admin": {"listen": "127.0.0.1:1"}}},
    "replicas that each have a file": {"settings": {"source": {"kind": "sqlite"}}, "replicas": 2, "persistence": {"enabled": True}},
    "a file on a read-only root": {"settings": {"source": {"kind": "sqlite"}}, "replicas": 1},
}

SOMEBODYS_API = """
apiVersion: apps/v1
kind: Deployment
metadata: { name: api, labels: { jobcast: sidecar } }
spec:
  selector: { matchLabels: { app: api } }
  template:
    metadata: { labels: { app: api } }
    spec:
      containers: [{ name: api, image: api }]
"""

faults = []


def fault(where, said):
    faults.append(f"{where}: {said}")


def seconds(text):
    return int(text.removesuffix("s"))


def check_schemas(where, objects):
    for one in objects:
        if one["kind"] in FOREIGN:
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                at = "/".join(str(step) for step in error.path)
                fault(where, f"{one['kind']} {one['metadata']['name']}, Kubernetes {version}: {at}: {error.message}")


def settings_of(container, objects):
    """Returns the settings that a container is started with, from its ConfigMap and its environment."""
    settings = {}
    for one in objects:
        if one["kind"] == "ConfigMap":
            settings = tomllib.loads(one["data"]["jobcast.toml"])
    for variable in container.get("env", []):
        section, _, key = variable["name"].removeprefix("JOBCAST_").lower().rpartition("__")
        settings.setdefault(section, {})[key] = variable["value"]
    return settings


def check_pods(where, objects):
    """Holds each Jobcast's times, probes and rights against what it is told to do. Returns their number."""
    found = 0
    for one in objects:
        if one["kind"] != "Deployment":
            continue
        pod = one["spec"]["template"]["spec"]
        for container in pod.get("initContainers", []) + pod["containers"]:
            if container["name"] != "jobcast":
                continue
            found += 1
            settings = settings_of(container, objects)
            pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            leaving = pre_stop + seconds(settings["shutdown"]["grace"]) + seconds(settings["shutdown"]["drain"])
            patience = pod["terminationGracePeriodSeconds"]
            if patience <= leaving:
                fault(where, f"killed after {patience} s, of {leaving} that leaving takes")
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
                asked = container[probe]["httpGet"]
                listen = settings["admin"]["listen"]
                if asked["path"] != path or listen != f"0.0.0.0:{ports.get(asked['port'], asked['port'])}":
                    fault(where, f"{probe} asks {asked}, the admin listener is {listen}")
            if settings["http"]["listen"].rpartition(":")[2] not in {str(port) for port in ports.values()}:
                fault(where, f"{settings['http']['listen']} is none of the container's ports")
            rights = container["securityContext"]
            wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            if not wanted.items() <= rights.items():
                fault(where, f"the container may do more than it needs: {rights}")
            both = pod.get("securityContext", {}) | rights
            if not both.get("runAsNonRoot") or both.get("seccompProfile") != {"type": "RuntimeDefault"}:
                fault(where, f"runs as root or without seccomp: {both}")
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            unmounted = mounted - {volume["name"] for volume in pod["volumes"]}
            if unmounted:
                fault(where, f"mounts {unmounted}, which are no volumes of the pod")
            for variable in container.get("env", []):
                folder = os.path.dirname(variable["value"])
                if variable["name"].endswith("_FILE") and folder not in [mount["mountPath"] for mount in container["volumeMounts"]]:
                    fault(where, f"{variable['name']} leads to {variable['value']}, where nothing is mounted")
    return found


def check_selectors(where, objects):
    """Holds what chooses pods by label against the labels of the pods."""
    pods = [one["spec"]["template"]["metadata"]["labels"].items() for one in objects if one["kind"] == "Deployment"]
    for one in objects:
        spec = one.get("spec", {})
        wanted = {
            "Service": lambda: spec["selector"],
            "Deployment": lambda: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
        }.get(one["kind"])
        if wanted and not any(wanted().items() <= labels for labels in pods):
            fault(where, f"{one['kind']} {one['metadata']['name']} chooses no pod: {wanted()}")


def check_all(where, objects, kinds):
    check_schemas(where, objects)
    found = check_pods(where, objects)
    if found != 1:
        fault(where, f"{found} Jobcasts, not one")
    check_selectors(where, objects)
    missing = set(kinds) - {one["kind"] for one in objects}
    if missing:
        fault(where, f"there is no {', '.join(sorted(missing))}")
    print(f"{where}: {len(objects)} objects")


def load(text):
    return [one for one in yaml.safe_load_all(text) if one]


def check_chart():
    chart = Chart.load(CHART)
    always = {"ConfigMap", "Deployment", "Service", "ServiceAccount"}
    kinds = {
        "the defaults": {"PodDisruptionBudget", "NetworkPolicy"},
        "all that can be switched on": {"HorizontalPodAutoscaler", "Ingress", "ServiceMonitor"},
        "SQLite on a volume": {"PersistentVolumeClaim"},
    }
    for name, values in GOOD_VALUES.items():
        where = f"chart, {name}"
        for error in lint(CHART, values, strict=True)["errors"]:
            fault(where, error)
        parts = chart.render(values, name="live", namespace="web")
        objects = [one for path, text in sorted(parts.items()) if path.endswith(".yaml") for one in load(text)]
        check_all(where, objects, always | kinds.get(name, set()))
    for name, values in BAD_VALUES.items():
        try:
            chart.render(values, name="live", namespace="web")
            fault("chart", f"takes {name}")
        # Helm's own errors have no type in common.
        except Exception as error:
            print(f"chart, {name}: refused: {str(error).strip().splitlines()[-1]}")


def check_kustomize(program):
    folder = ROOT / "deploy/kustomize"
    always = {"ConfigMap", "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
    if not program:
        objects = [one for file in sorted(folder.glob("*/*.yaml")) for one in load(file.read_text())]
        objects = [one for one in objects if "kustomize.config" not in one["apiVersion"] and one["metadata"]["name"] != "any"]
        check_schemas("kustomize, its plain files", objects)
        print(f"kustomize, its plain files: {len(objects)} objects")
        return

    def build(overlay):
        return load(subprocess.run([program, "build", overlay], check=True, stdout=subprocess.PIPE, text=True).stdout)

    check_all("kustomize, base", build(folder / "base"), always)
    (ROOT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as own:
        def overlay(**parts):
            (pathlib.Path(own) / "kustomization.yaml").write_text(yaml.safe_dump(parts))
            return build(own)

        (pathlib.Path(own) / "api.yaml").write_text(SOMEBODYS_API)
        at = "../../deploy/kustomize"
        objects = overlay(resources=[f"{at}/base"], components=[f"{at}/with-prometheus-operator"])
        check_all("kustomize, with the Prometheus Operator", objects, always | {"ServiceMonitor", "HorizontalPodAutoscaler"})
        check_all("kustomize, beside an API", overlay(resources=["api.yaml"], components=[f"{at}/sidecar"]), set())


check_chart()
check_kustomize(sys.argv[1] if len(sys.argv) > 1 else None)
for said in faults:
    print(said)
sys.exit(1 if faults else 0)
