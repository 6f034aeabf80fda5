"""Makes of the rendered chart what `podman kube play` knows, for tests/deployment/play-pods: reads manifests from standard input, and prints Deployments,
ConfigMaps and Secrets. A StatefulSet becomes a Deployment with a folder for its claim; probes and handlers go, as podman would run them in a shell.
"""

import sys

import yaml

# The passwords of docker-compose.yml.
HQ = {"PGPASSWORD": "playground", "AWS_ACCESS_KEY_ID": "fetcher", "AWS_SECRET_ACCESS_KEY": "playground"}
SECRETS = {
    "commcare-lake-fetcher": HQ,
    "commcare-lake-enricher": HQ,
    "commcare-lake-writer": {
        "LAKE_METASTORE__URL": "postgres://lake:playground@postgres:5432/lake_metastore",
        "LAKE_STORE__S3__ACCESS_KEY_ID": "lake",
        "LAKE_STORE__S3__SECRET_ACCESS_KEY": "playground",
    },
}


def playable(document):
    if document["kind"] == "StatefulSet":
        spec = document["spec"]
        claims = [claim["metadata"]["name"] for claim in spec.pop("volumeClaimTemplates")]
        spec["template"]["spec"]["volumes"] += [{"name": name, "emptyDir": {}} for name in claims]
        for key in ["serviceName", "podManagementPolicy"]:
            spec.pop(key)
        document["kind"] = "Deployment"
    if document["kind"] == "Deployment":
        for container in document["spec"]["template"]["spec"]["containers"]:
            for key in ["startupProbe", "livenessProbe", "readinessProbe", "lifecycle"]:
                container.pop(key)
    return document


documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
kept = [playable(document) for document in documents if document["kind"] in ["ConfigMap", "Deployment", "StatefulSet"]]
kept.sort(key=lambda document: document["kind"] != "ConfigMap")
secrets = [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data} for name, data in SECRETS.items()]
yaml.safe_dump_all([*secrets, *kept], sys.stdout)
