"""`ultramed-rl push` against a local stand-in of the hub's HTTP API: what arrives there, and what is never sent."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.rounds import finish_round, make_completion, make_prompt
from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import parse_config
from ultramed_rl.records import PreferenceGroup
from ultramed_rl.store import RunDirectory
from ultramed_rl.store.cards import write_pairs_card, write_policy_card
from ultramed_rl.store.shards import ShardedPhase

TOKEN = "hf_" + "s3cr3t" * 5


class Hub(BaseHTTPRequestHandler):
    """Repositories by kind and name, each with its branches' files. Small files come in the commit, others are put before it."""

    repositories: dict[str, dict[str, Any]] = {}
    blobs: dict[str, bytes] = {}
    asked: list[str] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"POST {self.path}")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if parts[-1] == "batch":
            objects = [
                {**item, "actions": {"upload": {"href": f"{self._own}/blob/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        name, (verb, branch) = "/".join(parts[1:4]), parts[4:6]
        repository = self.repositories[name]
        if verb == "branch":
            repository["branches"][branch] = {}
            return self._answer(201, {})
        if branch not in repository["branches"]:
            return self._answer(404, {"error": f"Invalid rev id: {branch}"})
        if verb == "preupload":
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith((".safetensors", ".parquet")) else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        url = f"{self._own}/{name.removeprefix('models/')}/commit/0a1b"
        return self._commit(repository["branches"][branch], body, url)

    def _create(self, wanted: dict[str, Any]) -> None:
        kind, name = wanted.get("type") or "model", f"{wanted['organization']}/{wanted['name']}"
        url = f"{self._own}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (key := f"{kind}s/{name}") in self.repositories:
            return self._answer(409, {"error": "You already created this repo", "url": url})
        private = wanted.get("visibility") == "private"
        self.repositories[key] = {"private": private, "branches": {"main": {}}}
        self._answer(200, {"url": url})

    def _commit(self, files: dict[str, bytes], body: bytes, url: str) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        self._answer(200, {"commitUrl": url, "commitOid": "0a1b"})

    def do_PUT(self) -> None:
        content, oid = self.rfile.read(int(self.headers["Content-Length"])), self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.blobs[oid] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        name = self.path.removeprefix("/api/")
        repository = self.repositories[name]
        about = {"id": name.partition("/")[2], "private": repository["private"], "tags": []}
        self._answer(200, {**about, "downloads": 0, "likes": 0, "siblings": []})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def _own(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import close_session, constants

    Hub.repositories, Hub.blobs, Hub.asked = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another one
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # one that was made with other settings
    yield Hub
    close_session()
    server.shutdown()
    thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An online run of one round, with its cards; its pairs are two files, its checkpoint has an optimizer's state."""
    config = parse_config(tiny_run(tmp_path, run__rounds=1))
    with RunDirectory.open(config, resume=False) as store:
        record = finish_round(store, 0)
        for name in ("pairs", "checkpoint"):
            record.discard(name)
        phase = ShardedPhase(record, "pairs", PreferenceGroup)
        for number in range(2):
            prompt = make_prompt(number)
            answers = (make_completion(prompt, 1, 0), make_completion(prompt, 2, 0))
            phase.keep([PreferenceGroup(prompt, answers, (2.0, 1.0))])
            phase.flush()
        phase.finish({"pairs": 1.0})

        def save(folder: Path) -> dict[str, float]:
            (folder / "optimizer").mkdir()
            (folder / "optimizer" / "rank-0.safetensors").write_bytes(bytes(5000))
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(bytes(range(250)) * 8)
            write_policy_card(store, record, folder, {})
            return {}

        record.phase_directory("checkpoint", save)
        write_pairs_card(store, record, {"pairs": 2.0})
        record.commit({"round": 0.0})
        write_policy_card(store, record, store.path, {"loss_last": 0.25}, rounds=[])
        return store.path


def push(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["push", *map(str, words)])


def front(card: bytes) -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load(card.decode().split("---\n")[1])
    return entries


def test_a_run_is_its_last_policy_with_its_card_licence_and_provenance(hub: type[Hub], run: Path) -> None:
    done = push(run, "me/mine", "--license", "apache-2.0", "--yes")
    assert done.exit_code == 0, done.output
    repository = hub.repositories["models/me/mine"]
    files = repository["branches"]["main"]
    assert not repository["private"] and sorted(files) == [
        *("README.md", "config.json", "model.safetensors", "provenance.json")
    ]
    assert files["model.safetensors"] == bytes(range(250)) * 8
    card = files["README.md"].decode()
    assert front(files["README.md"])["license"] == "apache-2.0" and "| loss last | 0.25 |" in card
    assert "Not filled in" not in card and "apache-2.0" in card.partition("## Licence")[2]
    manifest = json.loads((run / "rounds" / "000" / "checkpoint.json").read_text())
    provenance = json.loads(files["provenance.json"])
    assert provenance["digest"] == manifest["digest"] and str(run) not in str(files)
    assert len([line for line in hub.asked if "/commit/" in line]) == 1


def test_what_would_go_is_shown_and_nobody_is_asked(hub: type[Hub], run: Path) -> None:
    shown = push(run / "rounds" / "000" / "checkpoint", "me/mine", "--license", "mit", "--dry-run")
    assert shown.exit_code == 0 and "model.safetensors" in shown.output and "(license: mit)" in shown.output
    assert "optimizer" not in shown.output
    refused = push(run, "me/mine", "--license", "mit")  # no terminal to ask in
    assert refused.exit_code == 2 and "--yes" in refused.output and hub.asked == []


def test_pairs_are_a_data_set_that_loads_by_its_card(hub: type[Hub], run: Path, tmp_path: Path) -> None:
    import datasets

    for source in (run / "rounds" / "000", run / "rounds" / "000" / "pairs.parquet"):
        hub.repositories.clear()
        done = push(source, "me/pairs", "--private", "--yes")
        assert done.exit_code == 0, done.output
        files = hub.repositories["datasets/me/pairs"]["branches"]["main"]
        assert len([name for name in files if name.startswith("pairs.parquet/")]) == 2
    for name, content in files.items():
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rows = datasets.load_dataset(str(tmp_path / "there"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 2 and {"prompt", "chosen", "rejected"} <= set(rows.column_names)


def test_a_branch_is_made(hub: type[Hub], run: Path) -> None:
    done = push(run, "me/mine", "--license", "mit", "--revision", "v2", "--yes")
    assert done.exit_code == 0, done.output
    branches = hub.repositories["models/me/mine"]["branches"]
    assert branches["main"] == {} and "model.safetensors" in branches["v2"]


def test_without_a_licence_it_is_private_or_refused(hub: type[Hub], run: Path) -> None:
    refused = push(run, "me/mine", "--yes")
    assert refused.exit_code == 2 and "--license" in refused.output and hub.asked == []
    assert push(run, "me/mine", "--yes", "--private").exit_code == 0
    assert hub.repositories["models/me/mine"]["private"]


def test_what_is_to_be_private_never_goes_to_a_public_repository(hub: type[Hub], run: Path) -> None:
    hub.repositories["models/me/mine"] = {"private": False, "branches": {"main": {}}}
    refused = push(run, "me/mine", "--private", "--yes")
    assert refused.exit_code == 1 and "public" in refused.output
    assert hub.repositories["models/me/mine"]["branches"]["main"] == {}


def test_a_token_that_may_not_write_is_one_line_without_it(
    hub: type[Hub], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", wrong := "hf_" + "an0ther" * 5)
    refused = push(run, "me/mine", "--license", "mit", "--yes")
    last = refused.output.strip().splitlines()[-1]
    assert refused.exit_code == 1 and last.startswith("me/mine: not uploaded (") and "hf auth login" in last
    assert wrong not in refused.output


def test_what_was_changed_since_or_is_nothing_is_refused(hub: type[Hub], run: Path, tmp_path: Path) -> None:
    checkpoint = run / "rounds" / "000" / "checkpoint"
    (checkpoint / "model.safetensors").write_bytes(b"another")
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    for source, words in {
        run: "not what was written",
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "holds no files",
        bare: r"README.md: missing",
    }.items():
        refused = push(source, "me/mine", "--license", "mit", "--yes")
        assert refused.exit_code == 2 and words in refused.output, refused.output
    for name in ("mine", "me/mine/more", "me/"):
        assert push(run, name, "--yes").exit_code == 2
    assert hub.asked == []
