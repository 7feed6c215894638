"""infra/skypilot/train.yaml by SkyPilot's own schema, and its script run here as one machine of its would.

SkyPilot is installed beside this project and not into it, since it pins older packages: `make .venv-skypilot`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_cluster import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = REPOSITORY / "infra/skypilot/train.yaml"
SKY_PYTHON = REPOSITORY / ".venv-skypilot/bin/python"
VALIDATE = """
import json, sys, yaml, sky
from sky.utils import common_utils, schemas
tree = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(tree, schemas.get_task_schema(), "task: ")
task = sky.Task.from_yaml_config(tree, env_overrides=[("ROOT", "s3://bucket/run")])
print(json.dumps([task.num_nodes, [[r.accelerators, r.use_spot, r.job_recovery] for r in task.resources]]))
"""


def validated(path: Path, home: Path) -> subprocess.CompletedProcess[str]:
    if not SKY_PYTHON.exists():
        pytest.skip("SkyPilot is not installed: make .venv-skypilot")
    variables = {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PATH": os.environ["PATH"]}
    words = [str(SKY_PYTHON), "-c", VALIDATE, str(path)]
    return subprocess.run(words, cwd="/", env=variables, capture_output=True, text=True, timeout=300, check=False)


def task() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(TASK.read_text())
    return made


def test_skypilot_takes_the_task(tmp_path: Path) -> None:
    done = validated(TASK, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    nodes, resources = json.loads(done.stdout.splitlines()[-1])
    assert nodes == 2 and len(resources) == 3
    for accelerators, spot, recovery in resources:
        assert list(accelerators.values()) == [8] and spot and recovery["recover_on_exit_codes"] == [75]


def test_skypilot_refuses_a_key_that_it_does_not_know(tmp_path: Path) -> None:
    wrong = task() | {"nodes": 2}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(wrong))
    done = validated(tmp_path / "task.yaml", tmp_path)
    assert done.returncode != 0 and "nodes" in done.stderr


def test_its_script_starts_the_ranks_of_its_machine(tmp_path: Path) -> None:
    given = task()
    variables = {**given["envs"], **given["secrets"], "ROOT": str(tmp_path), "STAGE": "check"}
    variables |= {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1"}
    variables |= {"RANKS_PER_NODE": "1", "MASTER_PORT": str(free_ports(1)[0])}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", "-c", given["run"]]
    environment = os.environ | variables | {"HOME": str(tmp_path), "PATH": path}
    done = subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "over 1 ranks by gloo" in done.stdout, done.stdout + done.stderr
    assert "check, node 0 of 1, 1 of 1 ranks" in done.stdout


@pytest.mark.parametrize("script", ["setup", "run"])
def test_shellcheck_finds_nothing(tmp_path: Path, script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck not installed: apt-get install shellcheck")
    (tmp_path / "script").write_text("#!/bin/bash\n" + task()[script])
    left_out = "--exclude=SC2154,SC2155"  # variables of SkyPilot's; `export A=$(…)`
    done = subprocess.run(
        ["shellcheck", left_out, str(tmp_path / "script")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
