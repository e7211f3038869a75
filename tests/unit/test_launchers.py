"""launch/: files for Ray's launcher, KubeRay and SLURM fit their schemas, the locks, and the config that they run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.ray_job_schema import RAY_JOB
from ultramed_rl.config import load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CONFIG = load_config(ROOT / "configs" / "llama3-70b-4node.yaml")
KUBERNETES = kubernetes_validate.latest_version()


def read(name: str) -> Any:
    return yaml.safe_load((LAUNCH / name).read_text(encoding="utf-8"))


def found_in(pattern: str, text: str) -> str:
    """The group of a pattern that must be there."""
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} is nowhere"
    return match.group(1)


def locked(package: str) -> str:
    """The version in both locks, which must be one."""
    found = {
        found_in(rf"^{package}==(.*)$", (LAUNCH / "locks" / name).read_text())
        for name in ("cpu.txt", "cuda.txt")
    }
    (version,) = found
    return version


# -- Ray's cluster launcher --------------------------------------------------------------------------------


CLUSTERS = ("ray-cluster.yaml", "ray-cluster-aws.yaml")
COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_file_is_what_rays_launcher_takes(name: str) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = read(name)
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):  # the schema is strict enough to find a typo
        jsonschema.validate({**cluster, "max_worker": 3}, schema)
    prepared = prepare_config(cluster)
    validate_config(prepared)
    *_, workers = prepared["available_node_types"].values()
    assert workers["max_workers"] == prepared["max_workers"]


def test_the_machines_at_aws_are_those_of_the_config_that_it_names() -> None:
    text, cluster = (LAUNCH / "ray-cluster-aws.yaml").read_text(), read("ray-cluster-aws.yaml")
    assert "ultramed-rl submit configs/llama3-70b-4node.yaml" in text
    head, workers = (cluster["available_node_types"][name] for name in ("head", "gpu"))
    assert workers["min_workers"] == workers["max_workers"] == cluster["max_workers"] == CONFIG.cluster.nodes
    cards = workers["node_config"]["NetworkInterfaces"]
    assert [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards] == [
        *((0, 0), (1, 1), (2, 1), (3, 1))
    ]
    assert {card["InterfaceType"] for card in cards} == {"efa"} and cluster["provider"]["use_internal_ips"]
    for card in cards:  # all nodes in one subnet and one group
        assert (card["SubnetId"], card["Groups"]) == tuple(
            head["node_config"][key] for key in ("SubnetId", "SecurityGroupIds")
        )
    assert head["node_config"]["ImageId"] == workers["node_config"]["ImageId"]
    assert not any("flash-attn" in line for line in cluster["setup_commands"]), "every node would compile it"


def test_aws_makes_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In moto's EC2, which makes one machine where four are asked for: boto3 knows every key, and Ray what a machine has."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    (tmp_path / "key.pem").touch()
    with moto.mock_aws():
        ec2, iam = boto3.resource("ec2", "us-east-1"), boto3.client("iam")
        network = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnet = network.create_subnet(CidrBlock="10.0.0.0/20", AvailabilityZone="us-east-1a")
        group = network.create_security_group(GroupName="nodes", Description="nodes")
        ec2.create_key_pair(KeyName="ultramed-rl")
        for role in ("head", "worker"):
            iam.create_instance_profile(InstanceProfileName=f"ultramed-rl-{role}")
        text = (LAUNCH / "ray-cluster-aws.yaml").read_text()
        image = next(iter(ec2.images.all()))
        for made in (subnet, group, image):
            text = text.replace(f"{made.id.partition('-')[0]}-0123456789abcdef0", made.id)
        cluster = prepare_config(yaml.safe_load(text))
        cluster["auth"]["ssh_private_key"] = str(tmp_path / "key.pem")
        cluster = AWSNodeProvider.bootstrap_config(cluster)
        cluster = AWSNodeProvider.fillout_available_node_types_resources(cluster)
        provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
        kinds = cluster["available_node_types"]
        for name, kind in kinds.items():
            tags = {TAG_RAY_NODE_KIND: name, TAG_RAY_USER_NODE_TYPE: name}
            provider.create_node(kind["node_config"], tags, kind["max_workers"] or 1)
        nodes = [ec2.Instance(node) for node in provider.non_terminated_nodes({})]
        assert {(node.instance_type, node.subnet_id, node.image_id) for node in nodes} == {
            (kind["node_config"]["InstanceType"], subnet.id, image.id) for kind in kinds.values()
        }
    assert kinds["gpu"]["resources"]["GPU"] == CONFIG.cluster.devices_per_node


def test_the_cluster_has_the_nodes_of_the_config_that_it_names() -> None:
    text, cluster = (LAUNCH / "ray-cluster.yaml").read_text(), read("ray-cluster.yaml")
    assert "ultramed-rl submit configs/llama3-70b-4node.yaml" in text
    provider = cluster["provider"]
    assert 1 + len(provider["worker_ips"]) == CONFIG.cluster.nodes
    assert cluster["max_workers"] == len(provider["worker_ips"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_asks_for_the_token_of_the_machine_that_started_it(name: str) -> None:
    cluster = read(name)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in cluster[key] if "ray start" in line]
        before, _, _ = start.partition("ray start")
        assert "export RAY_AUTH_MODE=token &&" in before and "chmod 600 ~/.ray/auth_token &&" in before


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_dashboard_is_not_opened_to_the_network(name: str) -> None:
    assert "--dashboard-host" not in " ".join(read(name)["head_start_ray_commands"])


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("key", COMMANDS)
def test_every_command_of_the_cluster_is_one_that_bash_reads(name: str, key: str) -> None:
    for line in read(name)[key]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


# -- KubeRay -----------------------------------------------------------------------------------------------


def groups(job: Any) -> list[Any]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_ray_job_is_one() -> None:
    jsonschema.validate(read("kuberay-rayjob.yaml"), RAY_JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "ultramed-rl"),
        (("spec", "submissionMode"), "K8sJob"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "rayClusterSpec", "headGroupSpec", "replicas"), 1),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
    ],
)
def test_a_wrong_ray_job_is_found(path: tuple[str, ...], value: Any) -> None:
    job = read("kuberay-rayjob.yaml")
    node = job
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_every_pod_is_one_that_kubernetes_takes() -> None:
    for group in groups(read("kuberay-rayjob.yaml")):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_every_mount_has_its_volume_and_shared_memory_is_memory() -> None:
    for group in groups(read("kuberay-rayjob.yaml")):
        spec = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]


def test_the_ray_job_has_the_nodes_of_its_config_and_the_locks_versions() -> None:
    job = read("kuberay-rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == CONFIG.cluster.nodes
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(CONFIG.cluster.devices_per_node)
    project = found_in(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())
    assert cluster["rayVersion"] == locked("ray") and cluster["authOptions"] == {"mode": "token"}
    for group in groups(job):
        image = group["template"]["spec"]["containers"][0]["image"]
        assert image.endswith(f"/ultramed-rl:{project}-ray{locked('ray')}")


def test_the_ray_job_runs_a_config_of_this_project_and_resumes() -> None:
    job = read("kuberay-rayjob.yaml")
    shell, option, script = shlex.split(job["spec"]["entrypoint"])
    program, command, config, *rest = shlex.split(script.split(";")[0])
    assert (shell, option, program, command) == ("bash", "-c", "ultramed-rl", "run")
    assert rest == ["run.directory=/shared/runs", "--resume"]
    inside = Path(config).relative_to("/shared")  # on the volume, not in the image
    assert load_config(ROOT / inside, ["run.directory=/shared/runs"]).cluster == CONFIG.cluster
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    assert not any("KEY" in name for name in variables), "a secret would be on the dashboard"
    assert job["spec"]["submissionMode"] == "HTTPMode", "a lost connection would end a healthy run"


@pytest.mark.parametrize(("code", "stops"), [(0, False), (1, False), (2, True), (143, False)])
def test_a_wrong_config_stops_the_job_and_any_other_failure_is_tried_again(
    tmp_path: Path, code: int, stops: bool
) -> None:
    spec = read("kuberay-rayjob.yaml")["spec"]
    for name, text in {
        "ultramed-rl": f"exit {code}",
        "ray": 'echo "$@" >"$LOG"',
        "sleep": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    ended = subprocess.run(shlex.split(spec["entrypoint"]), env=environment)
    assert ended.returncode == code and (tmp_path / "log").exists() == stops
    if stops:
        assert (tmp_path / "log").read_text() == f"job stop {spec['jobId']} --no-wait\n"


def test_what_the_ray_job_needs_is_there_and_reaches_its_pods() -> None:
    objects = list(yaml.safe_load_all((LAUNCH / "kuberay-setup.yaml").read_text()))
    for each in objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    claim, policy = objects
    for group in groups(read("kuberay-rayjob.yaml")):
        template = group["template"]
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert selector.items() <= template["metadata"]["labels"].items()
        assert {"podSelector": {"matchLabels": selector}} in policy["spec"]["ingress"][0]["from"]


# -- the image ---------------------------------------------------------------------------------------------


def test_the_image_is_the_ray_jobs_and_gets_what_set_up_reads_and_no_more() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    (image,) = {g["template"]["spec"]["containers"][0]["image"] for g in groups(read("kuberay-rayjob.yaml"))}
    assert f"docker build -f launch/Dockerfile -t {image} .\n" in text
    ignored, *kept = (ROOT / ".dockerignore").read_text().split()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert ignored == "*" and {f"!{name}" for name in copied} == set(kept) - {"**/__pycache__"}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "launch", "ultramed_rl", project["readme"]} <= set(copied)
    assert set(found_in(r"bash (launch/setup\.sh \S+)", text).split()) == {"launch/setup.sh", "${EXTRAS}"}
    arguments = dict(re.findall(r"^ARG (\w+)=(\S*)$", text, re.MULTILINE))
    assert arguments["PROFILE"] == "cuda" and locked("torch").startswith("2.") and ":13." in arguments["BASE"]


# -- SLURM -------------------------------------------------------------------------------------------------

# A call is written at once: several programs write at the same time.
RECORD = 'printf "%s%s%s\\n" "${PREFIX:-}" "${0##*/}" "$(printf " %q" "$@")" >>"$LOG"\n'
FAKES = {
    # What a cluster of these nodes would do: a step that starts Ray lasts until it is stopped.
    "srun": RECORD
    + """echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$TOKENS"
for word in "$@"; do
  case $word in --nodes=*) count=${word#*=} ;; hostname) echo "10.1.2.3 fe80::1"; exit ;; esac
done
[ -z "${BROKEN:-}" ] || exit 1
for _ in $(seq "$count"); do echo up >>"$UP"; done
echo $$ >>"$UP.steps"
exec sleep 60
""",
    "scancel": 'kill $(cat "$UP.steps" 2>/dev/null) 2>/dev/null\n',
    "scontrol": RECORD
    + """case $1 in show) printf "n1\\nn2\\nn3\\n" ;; requeue) kill $(cat "$UP.steps") ;; esac\n""",
    "ray": RECORD
    + """echo "Active:"; sed "s/.*/ 1 node_&/" "$UP"; echo "Pending:"; echo " (no pending nodes)"\n""",
    "ultramed-rl": 'PREFIX="RAY_ADDRESS=$RAY_ADDRESS "\n'
    + RECORD
    + """echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$TOKENS"
ls -l .ray-token-* >"$TOKENS.file"; cat .ray-token-* >>"$TOKENS.file"; echo $$ >>"$UP.steps"; exec sleep "${LASTS:-0}"\n""",
    # Between two looks at Ray.
    "sleep": 'case $1 in 2 | 5) set -- 0.05 ;; esac\nexec /bin/sleep "$@"\n',
}


def slurm(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The script as sbatch would start it, in a copy, with fakes before everything else on the PATH."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (programs / name).chmod(0o755)
    (tmp_path / "up").touch()
    script = tmp_path / "slurm_script"  # SLURM runs a copy in its spool
    script.write_bytes((LAUNCH / "slurm.sh").read_bytes())
    environment = {
        "PATH": os.environ["PATH"],
        "LOG": str(tmp_path / "log"),
        "UP": str(tmp_path / "up"),
        "TOKENS": str(tmp_path / "tokens"),
        "ULTRAMED_RL_VENV": str(tmp_path / "venv"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "96",
        **variables,
    }
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def recorded(tmp_path: Path) -> list[str]:
    """The calls in their order, without those that only look."""
    lines = (tmp_path / "log").read_text().splitlines()
    return [line for line in lines if not line.startswith("ray status")]


def test_slurm_starts_a_head_then_workers_then_the_run_with_their_address(tmp_path: Path) -> None:
    process = slurm(tmp_path, "configs/my run.yaml", "run.directory=/shared/runs")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    ray = "--block --num-gpus=8 --num-cpus=96 --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0"
    step = "--cpus-per-task=96 --kill-on-bad-exit=0"
    ports = "--port=20770 --ray-client-server-port=20771 --dashboard-port=20772"  # by the job's number
    assert [
        re.sub(r"bash -c \$'(?:[^'\\]|\\.)*' keep_ray", "keep_ray", line) for line in recorded(tmp_path)
    ] == [
        "scontrol show hostnames n\\[1-3\\]",
        "srun --nodes=1 --ntasks=1 --nodelist=n1 hostname -I",
        f"srun --nodes=1 --ntasks=1 {step} --nodelist=n1 keep_ray /tmp/ray-77 0 ray start --head "
        f"--node-ip-address=10.1.2.3 {ports} --temp-dir=/tmp/ray-77 {ray}",
        f"srun --nodes=2 --ntasks=2 {step} --exclude=n1 keep_ray /tmp/ray-77 5 ray start --address=10.1.2.3:20770 {ray}",
        "RAY_ADDRESS=10.1.2.3:20770 ultramed-rl run configs/my\\ run.yaml run.directory=/shared/runs --resume",
    ]


def test_slurm_makes_a_token_for_each_job_and_shows_it_to_its_owner_alone(tmp_path: Path) -> None:
    made = set()
    for job in ("77", "78"):
        folder = tmp_path / job
        folder.mkdir()
        (folder / f".ray-token-{job}").write_text("of a job that was killed")
        output, _ = slurm(folder, "c.yaml", SLURM_JOB_ID=job).communicate(timeout=30)
        _, head, workers, driver = (
            (folder / "tokens").read_text().splitlines()
        )  # the first asks for an address
        mode, token = driver.split()
        assert mode == "token" and re.fullmatch("[0-9a-f]{64}", token) and head == workers == driver
        listed, kept = (folder / "tokens.file").read_text().splitlines()
        assert listed.startswith("-rw------- ") and kept == token
        assert f"RAY_AUTH_TOKEN_PATH={folder}/.ray-token-{job}" in output
        assert token not in output + (folder / "log").read_text()
        assert not list(folder.glob(".ray-token-*"))
        made.add(token)
    assert len(made) == 2


def test_slurm_gives_back_the_runs_exit_code_and_other_commands_run_too(tmp_path: Path) -> None:
    process = slurm(
        tmp_path, "c.yaml", ULTRAMED_RL_COMMAND="data score", ULTRAMED_RL_PORT="7000", LASTS="wrong"
    )
    assert process.wait(timeout=30) == 1  # sleep's
    assert recorded(tmp_path)[-1] == "RAY_ADDRESS=10.1.2.3:7000 ultramed-rl data score c.yaml --resume"


def test_slurm_queues_the_job_again_before_its_time_is_up(tmp_path: Path) -> None:
    process = slurm(tmp_path, "c.yaml", LASTS="60")
    deadline = time.monotonic() + 20
    while not any("ultramed-rl" in line for line in recorded_so_far(tmp_path)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=20)  # ends only when every step has let go of stdout
    assert process.returncode == 0, output
    assert recorded(tmp_path)[-1] == "scontrol requeue 77"


def recorded_so_far(tmp_path: Path) -> list[str]:
    return recorded(tmp_path) if (tmp_path / "log").exists() else []


def test_slurm_stops_when_ray_does_not_come_up(tmp_path: Path) -> None:
    process = slurm(tmp_path, "c.yaml", BROKEN="1")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1, output
    assert not any("ultramed-rl" in line for line in recorded(tmp_path)), "the run was started"
    assert sum("ray start --head" in line for line in recorded(tmp_path)) == 3


def test_on_each_node_ray_is_started_again_and_its_folder_goes_at_the_end(tmp_path: Path) -> None:
    """Its Ray dies twice, then lasts until SLURM ends the step."""
    script = found_in(r"(?s)^keep_ray='\n(.*?)'$", (LAUNCH / "slurm.sh").read_text())
    for name, text in {
        "ray": 'echo up >>"$LOG"; [ "$(wc -l <"$LOG")" -ge 3 ] || exit 7; exec /bin/sleep 60',
        "sleep": "exit 0",  # between two starts
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (folder := tmp_path / "ray-77").mkdir()
    log = tmp_path / "log"
    for again, starts in (("5", 3), ("0", 1)):
        log.unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        kept = subprocess.Popen(
            ["bash", "-c", script, "keep_ray", str(folder), again, "ray", "start", "--block"],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)},
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 20
        while starts == 3 and not (log.exists() and len(log.read_text().splitlines()) == starts):
            assert time.monotonic() < deadline and kept.poll() is None
            time.sleep(0.05)
        if starts == 3:
            kept.terminate()
        said, _ = kept.communicate(timeout=20)
        assert kept.returncode == (143 if starts == 3 else 7) and not folder.exists()
        assert said.count("exit code 7") == starts - 1 and len(log.read_text().splitlines()) == starts


def test_slurm_wants_a_config(tmp_path: Path) -> None:
    process = slurm(tmp_path)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0 and " launch/slurm.sh configs/llama3-70b-4node.yaml" in output


def test_slurm_asks_for_the_nodes_of_the_config_that_it_names() -> None:
    text = (LAUNCH / "slurm.sh").read_text()
    assert f"#SBATCH --nodes={CONFIG.cluster.nodes}\n" in text
    assert f"#SBATCH --gpus-per-node={CONFIG.cluster.devices_per_node}\n" in text
    assert "sbatch launch/slurm.sh configs/llama3-70b-4node.yaml run.directory=/shared/runs" in text
    named = re.findall(r"configs/[\w./-]+\.yaml", text)
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("smi", "profile"),
    [
        ("for i in {1..9999}; do echo GPU $i: NVIDIA H100; done", "cuda"),
        ("echo No devices; exit 9", "cpu"),
        (None, "cpu"),
    ],
)
def test_set_up_takes_the_packages_of_the_device_and_only_those_not_there(
    tmp_path: Path, smi: str | None, profile: str
) -> None:
    """All that nvidia-smi says is read, however long. Its stamp says what is there already."""
    names = ["launch/setup.sh", "pyproject.toml", *(f"launch/locks/{n}.txt" for n in ("cpu", "cuda", "dev"))]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "sha256sum"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    if smi:
        (tmp_path / "bin" / "nvidia-smi").write_text(f"#!{shutil.which('bash')}\n{smi}\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    read = [f"launch/locks/{profile}.txt", "launch/locks/dev.txt", "pyproject.toml", "launch/setup.sh"]
    digest = hashlib.sha256(b"".join((tmp_path / name).read_bytes() for name in read)).hexdigest()

    def set_up(there: str, *arguments: str) -> int:
        """0 where nothing is missing, 1 where it would go on and finds no Python."""
        (tmp_path / ".venv").mkdir(exist_ok=True)
        (tmp_path / ".venv" / ".ultramed_rl-setup").write_text(f"{profile} {digest} {there}\n")
        command = ["bash", str(tmp_path / "launch" / "setup.sh"), *arguments]
        return subprocess.run(command, env={"PATH": str(tmp_path / "bin")}, capture_output=True).returncode

    assert set_up(" ") == set_up("dev ") == set_up("dev ", "--dev") == 0
    assert set_up("dev flash-attn", "--dev", "--flash-attn") == 0
    assert set_up(" ", "--dev") == set_up("dev ", "--flash-attn") == 1
    assert set_up(" ", "--anything") == 2


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_every_script_is_one_that_bash_reads(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
