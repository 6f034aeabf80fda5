"""Checks the Helm chart without a cluster, and prints what its services run, as JSON:
{"fetcher": {"config": "[kafka] …", "environment": {"LAKE_TELEMETRY__HTTP_ADDRESS": …}}, …}

Usage: check_kubernetes.py ROOT TOOLS [--write]. TOOLS is the folder of helm and kubectl; --write makes deploy/kubernetes/rendered.yaml anew.
Fails with one line for each thing that is wrong.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

from pod_rules import PodRules

# The version whose schemas count.
KUBERNETES = "1.34"
RELEASE = "commcare-lake"
NAMESPACE = "commcare-lake"
KINDS = [
    *["ConfigMap"] * 4, *["Deployment"] * 2, "HorizontalPodAutoscaler", "Job", *["NetworkPolicy"] * 5, *["PodDisruptionBudget"] * 3,
    "PrometheusRule", "ScaledObject", *["Service"] * 4, *["ServiceAccount"] * 3, "ServiceMonitor", "StatefulSet", "TriggerAuthentication",
]  # fmt: skip
# What the schema of the values must not let pass.
REFUSED_VALUES = [
    "fetcher.replica=3",
    "fetcher.replicas=0",
    "writer.scaling.mode=keda",
    "enricher.scaling.mode=lag",
    "fetcher.scaling.mode=keda",
    "enricher.scaling.mode=keda",
    "image.digest=latest",
    "drainSeconds=soon",
    "fetcher.resources.limits=null",
    'fetcher.config=sasl_password = "hunter2"',
    "networkPolicies.nats.podLabels=null",
    "fetcher.egressPorts={70000}",
]
# What the templates refuse, as a schema cannot compare two values.
REFUSED_BY_TEMPLATES = [("fetcher.scaling.minReplicas=5", "minReplicas is above maxReplicas")]


def misspelt(document):
    document["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"


def wrong_type(document):
    document["spec"]["replicas"] = "two"


def without_image_name(document):
    del document["spec"]["template"]["spec"]["containers"][0]["name"]


def unknown_trigger_field(document):
    document["spec"]["triggers"][0]["thresholds"] = "1"


def unknown_endpoint_field(document):
    document["spec"]["endpoints"][0]["every"] = "1s"


# Kinds with what is done to them; each must be refused.
BROKEN = [
    ("Deployment", misspelt),
    ("Deployment", wrong_type),
    ("StatefulSet", without_image_name),
    ("ScaledObject", unknown_trigger_field),
    ("ServiceMonitor", unknown_endpoint_field),
]


class Chart:
    def __init__(self, root, tools):
        self.root, self.tools = root, tools
        self.folder = root / "deploy/helm/commcare-lake"
        self.every_kind = root / "tests/deployment/every-kind.yaml"
        self.schemas = {path.stem: json.loads(path.read_text()) for path in (root / "tests/deployment/custom-kinds").glob("*.json")}
        self.troubles = []

    def expect(self, holds, what, trouble):
        if not holds:
            self.troubles.append(f"{what}: {trouble}")

    def run(self, program, *arguments):
        command = [self.tools / program, *map(str, arguments)]
        return subprocess.run(command, cwd=self.root, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def helm(self, *arguments):
        result = self.run("helm", *arguments)
        if result.returncode != 0:
            sys.exit(f"helm {' '.join(map(str, arguments))}:\n{result.stdout}{result.stderr}")
        return result.stdout

    def render(self, *arguments):
        text = self.helm("template", RELEASE, self.folder, "--namespace", NAMESPACE, *arguments)
        return text, [document for document in yaml.safe_load_all(text) if document]

    def refusal(self, document):
        """Why a manifest is refused, or None."""
        schema = self.schemas.get(document["kind"])
        try:
            if schema:
                jsonschema.Draft7Validator(schema).validate(document)
            else:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            return f"{'.'.join(map(str, error.path))}: {error.message}"
        return None

    def check_values(self):
        for value in REFUSED_VALUES:
            result = self.run("helm", "template", RELEASE, self.folder, "--set", value)
            self.expect(result.returncode != 0 and "schema" in result.stderr, "values.schema.json", f"lets {value} pass")
        for value, reason in REFUSED_BY_TEMPLATES:
            result = self.run("helm", "template", RELEASE, self.folder, "--set", value)
            self.expect(result.returncode != 0 and reason in result.stderr, "templates", f"let {value} pass")

    def check_scaling(self, every):
        """Who is scaled has no number of its own, and KEDA is let in where the writer answers it."""
        deployments = [document for document in every if document["kind"] == "Deployment"]
        self.expect(all("replicas" not in document["spec"] for document in deployments), "every-kind", "a scaled Deployment has replicas")
        writer = next(document for document in every if document["kind"] == "StatefulSet")
        environment = writer["spec"]["template"]["spec"]["containers"][0]["env"]
        self.expect({"name": "LAKE_ADMIN__SCALER", "value": "true"} in environment, "every-kind", "the writer does not answer KEDA")
        scaled = next(document for document in every if document["kind"] == "ScaledObject")
        trigger = scaled["spec"]["triggers"][0]
        self.expect(trigger["metricType"] == "AverageValue", "ScaledObject", "its metric is not divided by the replicas")
        host, port = trigger["metadata"]["scalerAddress"].split(":")
        services = [document for document in every if document["kind"] == "Service" and host.startswith(document["metadata"]["name"] + ".")]
        self.expect(any(str(of["port"]) == port for service in services for of in service["spec"]["ports"]), "ScaledObject", f"no Service is {host}:{port}")
        policies = [document for document in every if document["kind"] == "NetworkPolicy" and document["metadata"]["name"].endswith("-writer")]
        keda = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
        rules = [rule for policy in policies for rule in policy["spec"]["ingress"] if keda in rule.get("from", [])]
        self.expect(any({"port": int(port)} in rule["ports"] for rule in rules), "NetworkPolicy", "KEDA does not reach the writer")

    def check(self):
        for values in [[], ["--values", self.every_kind]]:
            self.helm("lint", "--strict", self.folder, *values)
        text, default = self.render()
        _, every = self.render("--values", self.every_kind)
        kinds = sorted(document["kind"] for document in every)
        self.expect(kinds == sorted(KINDS), "every-kind.yaml", f"renders {kinds}")
        for document in [*default, *every]:
            refusal = self.refusal(document)
            self.expect(refusal is None, f"{document['kind']} {document['metadata']['name']}", refusal)
            self.expect(document["metadata"].get("namespace") == NAMESPACE, document["metadata"]["name"], "is in no namespace")
        for kind, spoil in BROKEN:
            document = copy.deepcopy(next(document for document in every if document["kind"] == kind))
            spoil(document)
            self.expect(self.refusal(document) is not None, kind, f"passes although it is broken ({spoil.__name__})")
        for name, documents in [("default", default), ("every-kind", every)]:
            self.troubles += [f"{name}: {trouble}" for trouble in PodRules(documents).troubles()]
        self.check_values()
        self.check_scaling(every)
        self.check_base(text, default)
        return default

    def check_base(self, text, default):
        """deploy/kubernetes is the chart as it is rendered without values."""
        rendered = self.root / "deploy/kubernetes/rendered.yaml"
        wanted = "# The chart deploy/helm/commcare-lake with its defaults; made by tests/deployment/check_kubernetes.py --write.\n" + text
        if "--write" in sys.argv:
            rendered.write_text(wanted)
        same = rendered.is_file() and rendered.read_text() == wanted
        self.expect(same, "deploy/kubernetes/rendered.yaml", "is not the chart's rendering; make it anew with --write")
        built = self.run("kubectl", "kustomize", "deploy/kubernetes")
        self.expect(built.returncode == 0, "kustomize", built.stderr)
        documents = [document for document in yaml.safe_load_all(built.stdout) if document]
        namespaces = [document for document in documents if document["kind"] == "Namespace"]
        self.expect(len(documents) == len(default) + 1 and len(namespaces) == 1, "kustomize", "does not build the chart and a namespace")
        for document in documents:
            refusal = self.refusal(document)
            self.expect(refusal is None, f"kustomize: {document['metadata']['name']}", refusal)
        for namespace in namespaces:
            enforced = namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
            self.expect(enforced == "restricted", "kustomize", "the namespace does not enforce restricted Pod Security")


def services(documents):
    """What a service gets as its configuration: the file and the variables, as far as they are known without a cluster."""
    configs = {
        name.removesuffix(".toml"): text
        for document in documents if document["kind"] == "ConfigMap"
        for name, text in document["data"].items() if name.endswith(".toml")
    }  # fmt: skip
    told = {}
    for document in documents:
        if document["kind"] in ["Deployment", "StatefulSet"]:
            container = document["spec"]["template"]["spec"]["containers"][0]
            variables = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
            told[container["command"][0]] = {"config": configs[container["command"][0]], "environment": variables}
    return told


def main():
    chart = Chart(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
    default = chart.check()
    if chart.troubles:
        sys.exit("\n".join(chart.troubles))
    json.dump(services(default), sys.stdout)


main()
