"""The command that uploads what a run made to a model hub: weights or pairs, with their card, licence and provenance."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from ultramed_rl.cli.program import WRONG, carrying_out, checking, command, fail
from ultramed_rl.tracking.console import say, tell

_CARD, _PROVENANCE = "README.md", "provenance.json"
_OWN = ("optimizer",)  # of a checkpoint: what the next round needs, and no reader of the model
_NOT_FILLED = re.compile(r"(## Licence\n\n)Not filled in: [^\n]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Upload:
    """What goes to a repository: files by their names there, and the card, as it will stand."""

    kind: Literal["model", "dataset"]
    folder: Path
    files: dict[str, Path]
    card: str
    license: str  # what the card says; "unknown" where nobody chose one
    provenance: dict[str, Any]


@command("push")
def push_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|PAIRS", help="a run's folder, a checkpoint's, or pairs.parquet"
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="made if it isn't there")],
    license: Annotated[
        str | None, typer.Option(help="as the hub calls it: apache-2.0, llama3.1; fills in the card")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="refused where the repository is public")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="a branch, made if it isn't there; by default main")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="upload without asking")] = False,
) -> None:
    """Upload a run's model, a checkpoint or pairs to the hub, in one commit, with card, licence and provenance. What goes is shown
    first. The token is the hub's own: `hf auth login`, or HF_TOKEN.

    Example: ultramed-rl push runs/quickstart me/my-model --license apache-2.0 --private --dry-run
    """
    if not _REPOSITORY.fullmatch(repository):
        fail(f"{repository}: no repository of the hub; write ORG/NAME, as in me/my-model", WRONG)
    if license is not None and not _LICENSE.fullmatch(license):
        fail(f"--license {license}: must be the hub's short name, as in apache-2.0 or llama3.1", WRONG)
    with checking():
        upload = find_upload(source, license)
        if upload.license == "unknown" and not private:
            raise ValueError(
                f"{source}: its card names no licence; give one by --license, which the sources' licences allow, or upload it "
                "--private"
            )
    where = f"{repository}{'' if revision is None else f', branch {revision}'}"
    about = {name: path.stat().st_size for name, path in upload.files.items()}
    tell("upload", repository=repository, kind=upload.kind, license=upload.license, files=about)
    say(f"{upload.kind} {where} ({'private' if private else 'public'}), from {upload.folder}")
    for name, size in about.items():
        say(f"  {_size(size):>10}  {name}")
    say(f"  with {_CARD} (license: {upload.license}) and {_PROVENANCE}; {_size(sum(about.values()))} in all")
    if dry_run:
        say("nothing was uploaded")
        return
    if not yes:
        if not sys.stdin.isatty():
            fail("push: nobody here to ask; add --yes to upload, or --dry-run to look", WRONG)
        typer.confirm("Upload this?", abort=True)
    with carrying_out() as result:
        result["output"] = send(upload, repository, private=private, revision=revision)
        say(f"uploaded: {result['output']}")


def find_upload(source: Path, license: str | None = None) -> Upload:
    """What there is to upload of a run, a checkpoint or pairs; verified where a manifest is beside it.

    Raises:
        ValueError: nothing that the hub takes, no card, or not what was written.
    """
    from huggingface_hub import RepoCard

    artifact, card = _find_artifact(source)
    is_data = artifact.suffix == ".parquet" or not (artifact / "config.json").is_file()
    if artifact.is_file():
        files = {artifact.name: artifact}
    else:
        inside = f"{artifact.name}/" if artifact.suffix == ".parquet" else ""
        files = {inside + name: path for name, path in _files_of(artifact)}
    if not files:
        raise ValueError(f"{artifact}: holds no files; name a run, a checkpoint's folder or pairs.parquet")
    if not card.is_file():
        raise ValueError(f"{card}: missing, and nothing is uploaded without a card; write one")
    text = card.read_text(encoding="utf-8")
    try:
        parts = RepoCard(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{card}: what stands between its --- lines is no YAML ({' '.join(str(error).split())}); mend it"
        ) from None
    if license is not None:  # in the section on it too, unless somebody wrote that
        words = (
            f"{license}. What is named above as a source has its own licences and terms, which bind this too."
        )
        parts.text = _NOT_FILLED.sub(lambda match: match[1] + words, parts.text)
        parts.data["license"] = license
        text = str(parts)
    kind: Literal["model", "dataset"] = "dataset" if is_data else "model"
    chosen = str(parts.data.get("license") or "unknown")
    return Upload(kind, artifact, files, text, chosen, _provenance_of(artifact))


def _find_artifact(source: Path) -> tuple[Path, Path]:
    """The folder or file to upload, and its card: of a run what it made."""
    from ultramed_rl.kinds import KINDS
    from ultramed_rl.store import RunReader
    from ultramed_rl.tracking.verdict import kept_round

    source = source.expanduser().absolute()
    if source.suffix == ".parquet" and source.exists():
        return source, source.parent / _CARD
    if (source / "config.yaml").is_file():
        run = RunReader.of(source)
        kind = KINDS[run.type]
        if kind.makes == "a comparison":
            raise ValueError(
                f"{source}: a run of type {run.type} makes neither a model nor data; name another"
            )
        if not run.finished:
            raise ValueError(
                f"{source}: hasn't finished; finish it by --resume, or name one of its checkpoints or pairs.parquet"
            )
        folder = run.round_path(kept_round(run)) if kind.in_rounds else source
        artifact = folder / kind.output
        beside = source if kind.in_rounds or artifact.is_file() else artifact
        return artifact, beside / _CARD
    if (source / "pairs.parquet").exists():
        return source / "pairs.parquet", source / _CARD
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; name a run, a checkpoint's folder or pairs.parquet")
    return source, source / _CARD


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Plain files under a folder by their names in it, without the card and what is of use to the run alone."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        shown = not any(part.startswith((".", "_")) for part in parts)
        if shown and path.is_file() and parts != (_CARD,) and parts[0] not in _OWN:
            yield "/".join(parts), path


def _provenance_of(artifact: Path) -> dict[str, Any]:
    """What its manifest says of it, verified; nothing where it has none. No path of this machine."""
    from importlib.metadata import version

    from ultramed_rl.store import ArtifactFolder

    folder, name = ArtifactFolder(artifact.parent), artifact.stem
    found: dict[str, Any] = {"made_by": f"ultramed_rl {version('ultramed_rl')}", "artifact": name}
    if folder.finished(name):
        manifest = folder.verify(name, cheaply=True, fix="put it back from a copy")
        found |= {key: manifest[key] for key in ("digest", "inputs", "created", "rows") if key in manifest}
    return found


def send(upload: Upload, repository: str, *, private: bool, revision: str | None) -> str:
    """Make the repository and the branch if need be, and upload everything in one commit. Returns the commit's address.

    Raises:
        ValueError: it is to be private, and is public.
        RuntimeError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    place: dict[str, Any] = {"repo_id": repository, "repo_type": upload.kind}
    with _asking(repository):
        api.create_repo(**place, private=private or None, exist_ok=True)
        if private and not api.repo_info(**place).private:
            raise ValueError(
                f"{repository}: is public already; make it private there, or choose another name"
            )
        if revision is not None:
            api.create_branch(**place, branch=revision, exist_ok=True)
        provenance = json.dumps(upload.provenance, indent=1).encode() + b"\n"
        contents: dict[str, Path | bytes] = {
            **upload.files,
            _CARD: upload.card.encode(),
            _PROVENANCE: provenance,
        }
        added = [CommitOperationAdd(name, content) for name, content in contents.items()]
        words = f"{upload.folder.name}, by ultramed_rl"
        done = api.create_commit(**place, operations=added, commit_message=words, revision=revision)
    return str(done.commit_url)


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Within, what the hub says against it is a RuntimeError of one line."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except (HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OSError, RuntimeError) as error:
        said = " ".join(str(error.__cause__ or error).split())[:300]
        raise RuntimeError(
            f"{repository}: not uploaded ({said}); log in by `hf auth login` with a token that may write there, and push again"
        ) from error


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
