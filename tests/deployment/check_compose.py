"""Checks what no schema can say about docker-compose.yml, and prints what its services of the lake run, as JSON:
{"fetcher": {"command": ["fetcher", "serve", …], "environment": {"PGPASSWORD": …}, "config": "deploy/config/fetcher.toml" or null}, …}

Usage: check_compose.py ROOT. Fails with one line for each thing that is wrong.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

# What the Dockerfile makes, by the name of its target, with the service that builds it.
IMAGES = {
    "commcare-lake:local": ("commcare-lake", "image"),
    "commcare-lake-simulated-hq:local": ("simulated-hq", "simulated-hq-image"),
}
# Images of others are pinned to a version, not to a line of them.
PINNED = re.compile(r":v?\d+(\.\d+){1,2}(-[a-z]+)?$")
# Where the Dockerfile puts deploy/config.
CONFIG_FOLDER = "/etc/commcare-lake/"
# host:port of an address, after a login if there is one.
HOST = re.compile(r"(?:^|//|@|\")(?:[^/@\s\"]+@)?([a-z][a-z0-9-]*):(?:9092|9000|5432|4222|9200)\b")


class Compose:
    def __init__(self, root):
        self.root = root
        self.services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
        self.volumes = yaml.safe_load((root / "docker-compose.yml").read_text())["volumes"]
        self.dockerfile = (root / "deploy/docker/Dockerfile").read_text()
        self.troubles = []

    def expect(self, holds, service, trouble):
        if not holds:
            self.troubles.append(f"{service}: {trouble}")

    def is_one_shot(self, name):
        return self.services[name].get("restart") == "no"

    def config_of(self, service):
        command = service.get("command", [])
        if "--config" not in command:
            return None
        path = command[command.index("--config") + 1]
        return "deploy/config/" + path.removeprefix(CONFIG_FOLDER) if path.startswith(CONFIG_FOLDER) else path

    def check(self):
        for name, service in self.services.items():
            self.check_service(name, service)
            if service["image"] in IMAGES:
                self.check_lake_service(name, service)
            else:
                self.expect(PINNED.search(service["image"]), name, f"{service['image']} is not pinned to a version")
        building = {name: service["build"]["target"] for name, service in self.services.items() if "build" in service}
        once = {service: target for target, service in IMAGES.values()}
        self.expect(building == once, "image", f"each image must be built once, but they are built by {building}")
        for target in once.values():
            stage = re.search(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM |\Z)", self.dockerfile, re.M | re.S)
            users = re.findall(r"^USER (.+)$", stage[1], re.M) if stage else []
            self.expect(users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), target, "the last USER must be a number, not root")
        self.expect(f"COPY deploy/config/ {CONFIG_FOLDER}" in self.dockerfile, "image", f"no configuration in {CONFIG_FOLDER}")
        self.check_shards()
        self.check_policies()

    def check_service(self, name, service):
        for port in service.get("ports", []):
            self.expect(str(port).startswith("127.0.0.1:"), name, f"port {port} is not published on 127.0.0.1 only")
        self.expect("healthcheck" in service or self.is_one_shot(name), name, "neither a health check nor restart: \"no\"")
        self.expect("container_name" not in service, name, "container_name forbids more than one of them")
        for needed, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            self.expect(needed in self.services, name, f"depends on {needed}, which does not exist")
            if needed in self.services:
                one_shot = condition == "service_completed_successfully"
                self.expect(one_shot == self.is_one_shot(needed), name, f"waits for {needed} by {condition}")
                healthy = condition != "service_healthy" or "healthcheck" in self.services[needed]
                self.expect(healthy, name, f"waits for the health of {needed}, which has no check")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (self.root / source).exists() if source.startswith(".") else source in self.volumes
            self.expect(there, name, f"volume {source} does not exist")
        for value in map(str, service.get("environment", {}).values()):
            self.check_hosts(name, value)

    def check_lake_service(self, name, service):
        self.expect(service.get("read_only") and service.get("cap_drop") == ["ALL"], name, "may write or has capabilities")
        self.expect("user" not in service, name, "another user than the image's")
        binary = service["command"][0]
        names = re.search(r"^ +&& for service in (.+?); do ln ", self.dockerfile, re.M)[1].split()
        built = f" target/release/{binary} " in self.dockerfile or binary in names
        self.expect(built, name, f"{binary} is not in the image")
        config = self.config_of(service)
        if config:
            path = self.root / config
            self.expect(path.is_file(), name, f"{config} does not exist")
            lines = path.read_text().splitlines() if path.is_file() else []
            self.check_hosts(config, "\n".join(line for line in lines if not line.startswith("#")))

    def check_hosts(self, where, text):
        for host in HOST.findall(text):
            self.expect(host in self.services, where, f"{host} is no service")

    def check_policies(self):
        """The playground tries the policies that the guide gives."""
        identities = json.loads((self.root / "deploy/playground/identities.json").read_text())
        for policy in identities["policies"]:
            given = json.loads((self.root / "deploy/s3" / f"{policy['name']}.json").read_text())
            self.expect(json.loads(policy["content"]) == given, "s3", f"tries another policy than deploy/s3/{policy['name']}.json")
        for identity in identities["identities"]:
            lakes = identity["name"] != "hq"
            self.expect(("policyNames" in identity) == lakes, "s3", f"{identity['name']} has not the rights that the guide gives")

    def check_shards(self):
        """The ranges that the simulated HQ writes by are those that the lake reads by."""
        played = self.services["hq-sim"]["environment"]["HQ_SIM_SHARD_URLS"]
        played = {re.fullmatch(r"(\d+)-(\d+)=.*/(\w+)", shard).groups() for shard in played.split(",")}
        sql = (self.root / "deploy/postgres/create-databases.sql").read_text()
        for _, _, database in played:
            self.expect(f"create database {database};" in sql, "postgres", f"database {database} is not created")
        for config in ["fetcher", "enricher", "lake"]:
            shards = tomllib.loads((self.root / f"deploy/config/{config}.toml").read_text())["hq"]["database"]["shards"]
            read = {(str(s["first"]), str(s["last"]), s["url"].rsplit("/", 1)[1]) for s in shards}
            self.expect(read == played, f"{config}.toml", f"shards {sorted(read)} are not those of hq-sim, {sorted(played)}")


def main():
    compose = Compose(Path(sys.argv[1]))
    compose.check()
    if compose.troubles:
        sys.exit("\n".join(compose.troubles))
    lake = {
        name: {
            "command": service["command"],
            "environment": {key: str(value) for key, value in service.get("environment", {}).items()},
            "config": compose.config_of(service),
        }
        for name, service in compose.services.items()
        if service["image"] in IMAGES
    }
    json.dump(lake, sys.stdout)


main()
