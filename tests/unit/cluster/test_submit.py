"""`ultramed-rl submit`: what is sent, what is refused before anything is sent, and what is never shown."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from typer.testing import CliRunner

from ultramed_rl.cli import app
from ultramed_rl.cli.jobs import command_line
from ultramed_rl.cluster.inputs import FILE_KEYS, MODEL_KEYS, path_problems
from ultramed_rl.cluster.jobs import (
    CONFIG_FILE,
    Submission,
    check_size,
    follow_log,
    hide_secrets,
    job_folder,
    read_runtime_env,
)
from ultramed_rl.config import dump_config, load_any, load_config
from ultramed_rl.config.document import read_document
from ultramed_rl.config.recipe import load_recipe
from ultramed_rl.kinds import KINDS

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
BIG = ROOT / "configs" / "llama3-70b-4node.yaml"
NOWHERE = ("--address", "http://127.0.0.1:9")  # the port of discard: nobody listens


def submit(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["submit", *arguments, *NOWHERE])


def read_any(path: Path) -> Any:
    return load_recipe(path) if read_document(path).data.get("type") == "recipe" else load_any(path)


# -- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_what_is_sent_reads_back_as_the_same_config_and_its_command_takes_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-that-opens-nothing")
    config = read_any(path)
    words = command_line(config, CONFIG_FILE, resume=False)
    with job_folder(Submission("name", words, dump_config(config), {})) as folder:
        assert [entry.name for entry in folder.iterdir()] == [CONFIG_FILE], "nothing else may be sent"
        assert read_any(folder / CONFIG_FILE) == config
        sent = str(folder / CONFIG_FILE)
        arguments = [sent if word == CONFIG_FILE else word for word in words[1:]]
        monkeypatch.chdir(ROOT if "data" in words or "recipe" in words else tmp_path)
        # Textbooks are what a user brings along.
        brought = ["stages.paragraphs.input=[README.md]"] if "textbooks/" in path.read_text() else []
        found = CliRunner().invoke(app, [*arguments, f"run.directory={tmp_path}", *brought, "--dry-run"])
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("llama3-8b-1node.yaml", "run"),
        ("sft/ultramedical-8b.yaml", "sft"),
        ("reward/ultramedrm-8b.yaml", "reward"),
        ("preference/ultramedical-8b-kto.yaml", "preference"),
        ("evaluate/ultramedical-8b.yaml", "evaluate"),
        ("reward_bench/ultramedrm-8b.yaml", "reward-bench"),
        ("recipes/ultramedical-8b.yaml", "recipe"),
        ("data/ultramedical.yaml", "recipe"),
    ],
)
def test_the_command_is_that_of_the_configs_type(config: str, expected: str) -> None:
    words = command_line(read_any(ROOT / "configs" / config), "c.yaml", resume=True)
    assert words == ("ultramed-rl", expected, "c.yaml", "--resume")


def test_a_data_stages_command_names_its_step(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("{type: data, run: {name: a}, input: [hf://a/b], step: {type: rules}}")
    assert command_line(load_any(file), "c.yaml", resume=False) == ("ultramed-rl", "data", "rules", "c.yaml")


def test_overrides_are_in_what_is_sent() -> None:
    config = load_config(BIG, ["run.directory=/shared/runs", "training.epochs=1"])
    with job_folder(Submission("name", (), dump_config(config), {})) as folder:
        sent = yaml.safe_load((folder / CONFIG_FILE).read_text())
    assert sent["run"]["directory"] == "/shared/runs" and sent["training"]["epochs"] == 1


def test_a_working_dir_goes_along_under_the_config(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("row")
    (tmp_path / CONFIG_FILE).write_text("another")
    with job_folder(Submission("name", (), "ours", {}, tmp_path)) as folder:
        assert (folder / "data" / "rows.jsonl").read_text() == "row"
        assert (folder / CONFIG_FILE).read_text() == "ours"
    assert (tmp_path / CONFIG_FILE).read_text() == "another" and not folder.exists()


def test_ray_packs_a_working_dir_through_its_links_and_heeds_gitignore(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _zip_files

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("row")
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "weights").write_text("heavy")
    (tmp_path / ".gitignore").write_text("runs/\n")
    packed = tmp_path / "packed.zip"
    with job_folder(Submission("name", (), "ours", {}, tmp_path)) as folder:
        packed_names = _packed(_zip_files, folder, packed)
    assert {CONFIG_FILE, "data/rows.jsonl"} <= packed_names
    assert not any("weights" in name for name in packed_names)


@pytest.mark.parametrize("ignored", [".gitignore", ".rayignore", "excludes", "venv", ""])
def test_a_working_dir_that_ray_would_not_take_is_refused_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    """With a limit of 1 MiB, and a file of so much that perhaps stays here."""
    monkeypatch.setattr("ray._private.runtime_env.packaging.GCS_STORAGE_MAX_SIZE", 2**20)
    folder = tmp_path / ("venv" if ignored == "venv" else "data")
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(2**20))
    (tmp_path / "small").write_bytes(bytes(2**18))
    if ignored.startswith("."):
        (tmp_path / ignored).write_text("data/\n")
    submission = Submission(
        "name", (), "ours", {"excludes": ["data"]} if ignored == "excludes" else {}, tmp_path
    )
    if ignored:
        check_size(submission)
    else:
        with pytest.raises(
            ValueError, match=r"--working-dir .*: 1 MiB, .* less than 1 .*: data 1 MiB, small 0 MiB"
        ):
            check_size(submission)


def _packed(zip_files: Any, folder: Path, file: Path) -> set[str]:
    from zipfile import ZipFile

    zip_files(str(folder), [], str(file), include_gitignore=True)
    return set(ZipFile(file).namelist())


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run.directory=/shared", "training.epoch=1"], r"training\.epoch: .*'epochs'"),
        (
            ["run.directory=/shared", "cluster.device_memory_gib=10"],
            r"cluster\.device_memory_gib=10 .*\bpolicy: .* = 57\.3 GiB; .*cluster\.policy\.offload_optimizer",
        ),
        ([], r"run\.directory='runs': .*run\.directory=/shared/runs"),
        (["run.directory=~/runs"], r"run\.directory='~/runs': .*run\.directory=/shared/runs"),
        (["run.directory=/shared", "policy.path=./policy"], r"policy\.path='\./policy': .*--working-dir DIR"),
        (["run.directory=/shared", "--env", "NOT_SET_ANYWHERE"], "^--env NOT_SET_ANYWHERE: "),
        (["run.directory=/shared", "--runtime-env", "none.yaml"], r"^--runtime-env none\.yaml: "),
        (["run.directory=/shared", "--working-dir", "nowhere"], "^--working-dir nowhere: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(arguments: list[str], named: str) -> None:
    found = submit(str(BIG), *arguments)
    assert found.exit_code == 2 and re.search(named, found.output), found.output
    assert "--address" not in found.output, "the cluster must not have been asked"


def test_an_address_that_is_not_the_dashboards_is_refused() -> None:
    found = CliRunner().invoke(app, ["submit", str(BIG), "run.directory=/s", "--address", "head:6379"])
    assert found.exit_code == 2 and re.search("^--address head:6379: .*http://HEAD:8265", found.output)


def test_no_cluster_at_the_address_is_a_failure_with_the_option_to_mend() -> None:
    found = submit(str(BIG), "run.directory=/shared")
    assert found.exit_code == 1 and "--address='http://127.0.0.1:9': " in found.output


def test_a_dry_run_sends_nothing_and_says_what_would_be_run() -> None:
    found = submit(str(BIG), "run.directory=/shared", "--env", "NCCL_DEBUG=WARN", "--dry-run", "--json")
    told = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.exit_code == 0 and [event["event"] for event in told] == ["plan", "submission", "result"]
    assert told[0]["plan"]["peak_bytes"] > 0
    assert told[1]["command"] == ["ultramed-rl", "run", CONFIG_FILE, "--resume"]
    assert told[1]["variables"] == ["NCCL_DEBUG"]


def test_no_resume_is_passed_on() -> None:
    found = submit(str(BIG), "run.directory=/shared", "--dry-run", "--no-resume")
    assert "ultramed-rl run ultramed-rl.yaml\n" in found.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "models" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


HERE = {"run": {"directory": "/shared"}}


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"prompts": {"sources": [{"uri": "rows.jsonl"}]}}, "prompts.sources.0.uri='rows.jsonl'"),
        ({"prompts": {"sources": [{"uri": "later/*.jsonl"}]}}, "prompts.sources.0.uri='later/*.jsonl'"),
        ({"input": ["hf://a/b", "rows.jsonl"]}, "input.1='rows.jsonl'"),
        ({"policy": {"path": "models/policy"}}, "policy.path='models/policy'"),
        (
            {"policies": {"path": "runs/old/rounds/002/checkpoint"}},
            "policies.path='runs/old/rounds/002/checkpoint'",
        ),
        ({"stages": {"sft": {"model": {"path": "~/policy"}}}}, "stages.sft.model.path='~/policy'"),
        ({"reward": {"terms": [{"template": "judge.txt"}]}}, "reward.terms.0.template='judge.txt'"),
    ],
)
def test_a_relative_path_of_this_machine_is_refused_with_both_cures(
    folder: Path, section: Any, key: str
) -> None:
    (line,) = path_problems({**HERE, **section}, None)
    assert line.startswith(f"{key}: ") and "--working-dir DIR" in line


@pytest.mark.parametrize(
    "section",
    [
        {"policy": {"path": "meta-llama/Llama-3.1-8B"}},
        {"policy": {"path": "/shared/policy", "chat_template": "chatml"}},
        {"policy": {"path": "offline://smollm2-135m-instruct"}},
        {"prompts": {"sources": [{"uri": "hf://a/b:train"}, {"uri": "/shared/rows.jsonl"}]}},
        {"benchmarks": {"tasks": [{"name": "medqa", "uri": "offline"}]}},
        {"run": {"directory": "s3://bucket/runs"}},
        {"step": {"embedder": "hashed"}, "input": ["stage://judged/rows"]},
    ],
)
def test_what_means_the_same_everywhere_is_not_refused(folder: Path, section: Any) -> None:
    assert path_problems({**HERE, **section}, None) == []


def test_the_scratch_of_a_run_behind_a_url_must_outlive_the_job() -> None:
    def problems(scratch: str) -> list[str]:
        return path_problems({"run": {"directory": "s3://bucket/runs", "scratch": scratch}}, None)

    assert problems("/shared/scratch") == problems("~/scratch") == []
    assert "run.scratch='scratch': " in problems("scratch")[0]


def test_with_a_working_dir_relative_paths_must_lead_into_it(folder: Path) -> None:
    def problems(uri: str) -> list[str]:
        return path_problems({"run": {"directory": "/shared"}, "data": {"uri": uri}}, folder)

    assert problems("rows.jsonl") == problems("*.jsonl") == problems("models/../rows.jsonl") == []
    for uri in ("absent.jsonl", "../rows.jsonl", "~/rows.jsonl", "none/*.jsonl"):
        (line,) = problems(uri)
        assert line.startswith(f"data.uri={uri!r}: ") and "--working-dir" in line


def test_a_run_in_a_jobs_copy_of_the_folder_would_be_lost(folder: Path) -> None:
    (line,) = path_problems({"run": {"directory": "runs"}}, folder)
    assert line.startswith("run.directory='runs': ")


@pytest.mark.parametrize(("directory", "code"), [("runs", 2), ("~/runs", 2), ("/shared/runs", 0)])
def test_what_runs_as_a_job_refuses_to_keep_its_run_there_however_it_was_submitted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, directory: str, code: int
) -> None:
    file = tmp_path / "c.yaml"
    turns, answers = (
        [{"from": "human", "value": "What?"}],
        [{"model": m, "text": f"It is {m}."} for m in "ab"],
    )
    row = {"id": "Set,0", "type": "Open-End", "conversations": turns, "candidates": answers}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    stage: dict[str, Any] = {
        "type": "data",
        "input": [str(tmp_path / "rows.jsonl")],
        "step": {"type": "rules"},
    }
    file.write_text(yaml.safe_dump({**stage, "run": {"name": "a", "directory": directory}}))

    def run() -> int:
        return CliRunner().invoke(app, ["data", "rules", str(file), "--dry-run"]).exit_code

    assert run() == 0
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert run() == code


# -- what stands before the dashboard ----------------------------------------------------------------------


def test_headers_and_certificates_reach_rays_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[dict[str, Any]] = []

    def client(address: str, **options: Any) -> Any:
        made.append(options)
        raise ConnectionError("nobody")

    monkeypatch.setattr("ultramed_rl.cluster.jobs.JobSubmissionClient", client)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    line = ["jobs", "list", "--address", "https://head:8265"]
    for arguments, variables in (
        ([], {}),
        (["--headers", '{"Cookie": "c"}', "--verify", "false"], {}),
        (["--verify", str(tmp_path)], {"RAY_JOB_HEADERS": '{"Authorization": "Basic x"}'}),
    ):
        assert CliRunner().invoke(app, [*line, *arguments], env=variables).exit_code == 1
    token = {"Authorization": "Bearer t"}
    assert made == [
        {"headers": token, "verify": True},
        {"headers": {**token, "Cookie": "c"}, "verify": False},
        {"headers": {"Authorization": "Basic x"}, "verify": str(tmp_path)},
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--headers", "Cookie: s3cr3t"), ("--headers", '{"a": 1}'), ("--verify", "/no/such")],
)
def test_headers_and_certificates_that_cannot_be_read_are_refused(option: str, value: str) -> None:
    found = CliRunner().invoke(app, ["jobs", "list", "--address", "http://head:8265", option, value])
    assert found.exit_code == 2 and found.output.startswith(option) and "s3cr3t" not in found.output


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_of(field.annotation)
    for part in get_args(annotation):
        yield from models_of(part)


def test_every_key_whose_words_speak_of_files_or_hub_ids_is_known() -> None:
    speaks = re.compile(r"\b(files?|folder|local director|hub id|URIs?|rows that|records to draw|CSV)\b")
    models = {model for kind in KINDS.values() for model in models_of(kind.config_class)}
    keys = {
        name
        for model in models
        for name, field in model.model_fields.items()
        if speaks.search(field.description or "") and "str" in str(field.annotation)
    }
    ours = {"name", "directory", "scratch"}  # of the run: its folders, which have rules of their own
    assert keys >= {"path", "uri", "input", "template", "include_path"}
    assert keys - ours <= FILE_KEYS | MODEL_KEYS


# -- variables and secrets ---------------------------------------------------------------------------------


def test_variables_of_the_command_line_stand_over_the_files(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("{env_vars: {NCCL_DEBUG: INFO, HF_HOME: /a}, pip: [six]}")
    found = read_runtime_env(file, ["NCCL_DEBUG=WARN", "TOKEN", "EMPTY="], {"TOKEN": "t=1", "OTHER": "o"})
    assert found == {
        "pip": ["six"],
        "env_vars": {"NCCL_DEBUG": "WARN", "HF_HOME": "/a", "TOKEN": "t=1", "EMPTY": ""},
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{working_dir: .}", "working_dir: .*--working-dir DIR"),
        ("{env_var: {}}", "env_var: .*'env_vars'"),
        ("{env_vars: {WANDB_API_KEY: 314159}}", r"env_vars\.WANDB_API_KEY: "),
        ("{env_vars: [WANDB_API_KEY=314159]}", "env_vars: .*NCCL_DEBUG: WARN"),
        ("env_vars: {WANDB_API_KEY: '314159", r"(?!env_vars).*YAML"),
        ("- 314159", "(?!env_vars: ).*env_vars: \\{NCCL_DEBUG: WARN\\}"),
    ],
)
def test_a_wrong_environment_file_is_refused_without_showing_a_value(
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^--runtime-env {file}: {named}") as caught:
        read_runtime_env(file, [], {})
    assert "314159" not in str(caught.value)


def test_a_value_given_in_place_of_a_name_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        read_runtime_env(None, ["sk-314159"], {})
    assert "314159" not in str(caught.value)


def test_no_value_is_shown_on_the_way_to_a_failed_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandb-314159")
    for more in ([], ["--dry-run"], ["--dry-run", "--json"]):
        found = submit(
            str(BIG), "run.directory=/shared", "--env", "WANDB_API_KEY", "--env", "HF_TOKEN=hf-271828", *more
        )
        assert "WANDB_API_KEY" in found.output and "HF_TOKEN" in found.output
        assert "314159" not in found.output and "271828" not in found.output


def test_secrets_are_cut_out_of_others_messages_and_plain_values_are_not() -> None:
    variables = {"API_KEY": "abc", "MY_TOKEN": "abcdef", "NCCL_DEBUG": "WARN", "EMPTY_KEY": ""}
    assert hide_secrets("sent abcdef and abc at WARN", variables) == "sent *** and *** at WARN"


def test_a_variable_that_the_config_reads_and_that_is_not_sent_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(BIG.read_text())
    term = "reward.terms=[{type: http, name: server, url: 'http://h:5000/get_reward', token_env: MY_TOKEN}]"
    arguments = [str(file), "run.directory=/shared", term, "reward.path=null", "--dry-run"]
    unsent = "MY_TOKEN: .*--env NAME"
    assert re.search(unsent, submit(*arguments).output)
    assert not re.search(unsent, submit(*arguments, "--env", "MY_TOKEN=x").output)


# -- following ---------------------------------------------------------------------------------------------


class Breaking:
    """A job server whose connections give what Ray's do: the log from its beginning, until they break."""

    def __init__(self, *connections: list[str]) -> None:
        self.connections = iter(connections)

    async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
        parts = next(self.connections)
        for part in parts:
            if part == "broken":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield part


def test_a_log_whose_connection_breaks_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.cluster.jobs._POLL_S", 0.0)
    said: list[str] = []
    client = Breaking(
        ["one\ntw", "broken"],
        ["broken"],
        ["one\n", "two\nthr"],
    )
    follow_log(client, "job", said.append)
    assert "".join(said) == "one\ntwo\nthr"


def test_a_log_that_cannot_be_reached_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.cluster.jobs._POLL_S", 0.0)
    with pytest.raises(RuntimeError, match="raysubmit_1: "):
        follow_log(Breaking(*[["broken"]] * 10), "raysubmit_1", lambda text: None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["list", "job"], "jobs list: .*JOB"),
        (["stop"], "jobs stop: .*JOB"),
        (["stop", "job", "--follow"], "jobs stop: --follow"),
        (["start", "job"], "start"),
    ],
)
def test_wrong_uses_of_jobs_are_refused(arguments: list[str], named: str) -> None:
    found = CliRunner().invoke(app, ["jobs", *arguments, *NOWHERE])
    assert found.exit_code == 2 and re.search(named, found.output)
