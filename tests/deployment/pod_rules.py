"""What no schema says about the manifests of the lake: each pod is locked in, can end in peace, is watched, spread and guarded."""

GRACE_MARGIN_SECONDS = 5


class PodRules:
    def __init__(self, documents):
        self.documents = documents
        self.found = []

    def troubles(self):
        accounts = {document["metadata"]["name"] for document in self.of("ServiceAccount") if document["automountServiceAccountToken"] is False}
        for document in self.of("Deployment", "StatefulSet", "Job"):
            self.check_pod(document, accounts)
        for document in self.of("Deployment", "StatefulSet"):
            self.check_serving(document)
        for document in self.of("ScaledObject", "HorizontalPodAutoscaler"):
            kind = document["spec"]["scaleTargetRef"].get("kind", "Deployment")
            self.expect(kind == "Deployment", document, "scales something else than a Deployment")
            name = document["spec"]["scaleTargetRef"]["name"]
            scaled = [target for target in self.of("Deployment") if target["metadata"]["name"] == name]
            self.expect(len(scaled) == 1, document, f"scales {name}, which is not there")
            self.expect(all("replicas" not in target["spec"] for target in scaled), document, "its Deployment sets replicas, too")
        self.expect(not self.of("Secret"), {"kind": "Secret", "metadata": {"name": "any"}}, "passwords must not be in the chart")
        return self.found

    def of(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def expect(self, holds, document, trouble):
        if not holds:
            self.found.append(f"{document['kind']} {document['metadata']['name']}: {trouble}")

    def check_pod(self, document, accounts):
        pod = document["spec"]["template"]
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        security = spec["securityContext"]
        self.expect(spec["serviceAccountName"] in accounts, document, "its ServiceAccount is missing or has a token")
        self.expect(spec["automountServiceAccountToken"] is False, document, "mounts a token")
        self.expect(spec["enableServiceLinks"] is False, document, "variables of Services would be read as configuration")
        self.expect(security["runAsNonRoot"] and security["runAsUser"] == 10001, document, "runs as another user than the image's")
        self.expect(security["seccompProfile"] == {"type": "RuntimeDefault"}, document, "has no seccomp profile")
        for container in spec["containers"]:
            inner = container["securityContext"]
            self.expect(inner["readOnlyRootFilesystem"] and not inner["allowPrivilegeEscalation"], document, "may write to its root or gain rights")
            self.expect(inner["capabilities"] == {"drop": ["ALL"]}, document, "has capabilities")
            self.expect("memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"], document, "has no bounds")
            self.expect("latest" not in container["image"], document, "has no version of its image")
            names = [variable["name"] for variable in container.get("env", [])]
            self.expect(len(names) == len(set(names)), document, f"has a variable twice: {names}")
        guards = [policy for policy in self.of("NetworkPolicy") if self.selects(policy["spec"]["podSelector"]["matchLabels"], labels)]
        self.expect(len(guards) == 1 and guards[0]["spec"]["policyTypes"] == ["Ingress", "Egress"], document, "has no network policy")

    def check_serving(self, document):
        pod = document["spec"]["template"]
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        (container,) = spec["containers"]
        paths = [container[probe]["httpGet"]["path"] for probe in ["startupProbe", "livenessProbe", "readinessProbe"]]
        self.expect(paths == ["/live", "/live", "/ready"], document, f"probes {paths}")
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        drain = int(environment["LAKE_PROCESS__SHUTDOWN_GRACE_SECONDS"]) + container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.expect(spec["terminationGracePeriodSeconds"] >= drain + GRACE_MARGIN_SECONDS, document, "is killed before it has drained")
        keys = {constraint["topologyKey"] for constraint in spec["topologySpreadConstraints"]}
        self.expect(keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}, document, "is not spread")
        budgets = [budget for budget in self.of("PodDisruptionBudget") if self.selects(budget["spec"]["selector"]["matchLabels"], labels)]
        self.expect(len(budgets) == 1, document, f"has {len(budgets)} disruption budgets")
        services = [service for service in self.of("Service") if self.selects(service["spec"]["selector"], labels)]
        self.expect(any(port["port"] == 9600 for service in services for port in service["spec"]["ports"]), document, "nobody reaches its metrics")

    @staticmethod
    def selects(selector, labels):
        return all(labels.get(key) == value for key, value in selector.items())
