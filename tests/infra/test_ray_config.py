"""infra/ray/cluster.yaml by Ray's own validation, and brought up against EC2 and IAM as moto plays them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import Server

RAY = Path(__file__).resolve().parents[2] / "infra/ray"
POLICIES = {"dnd-ray-head": ("storage-policy", "head-policy"), "dnd-ray-worker": ("storage-policy",)}


@pytest.fixture
def aws(moto: Server, use_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """boto3 on an account in which the guide's roles have been made."""
    import boto3

    use_s3(moto)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    statement = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam = boto3.client("iam")
    for name, policies in POLICIES.items():
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        for policy in policies:
            text = (RAY / f"{policy}.json").read_text()
            iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=text)
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return boto3


def read_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((RAY / "cluster.yaml").read_text())
    return config


def test_ray_accepts_the_config() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read_config())
    validate_config(config)
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(config | {"max_wokers": 1})


def test_nodes_start_with_their_roles_workers_on_spot(aws: Any) -> None:
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    config = _bootstrap_config(read_config(), no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        role = "head" if kind == "head" else "worker"
        provider.create_node(node["node_config"], {"ray-node-type": role, "ray-user-node-type": kind}, 1)
    started = {}
    for reservation in aws.client("ec2").describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            role = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
            started[instance["InstanceType"]] = (role, instance.get("InstanceLifecycle"))
    assert started == {
        "m7i.xlarge": ("dnd-ray-head", None),
        "c7i.4xlarge": ("dnd-ray-worker", "spot"),
        "g6.2xlarge": ("dnd-ray-worker", "spot"),
    }
    resources = {kind: node["resources"] for kind, node in config["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0} and resources["gpu"]["GPU"] == 1 and resources["cpu"]["CPU"] == 16
    workers = [node for kind, node in config["available_node_types"].items() if kind != "head"]
    assert all(node["min_workers"] == 0 for node in workers)


def test_start_commands_keep_the_token_and_the_dashboard_to_ourselves() -> None:
    config = read_config()
    assert "~/.ray/auth_token" in config["file_mounts"]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in config[name][-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert os.path.isfile(RAY.parents[1] / config["file_mounts"]["~/requirements.lock"])
