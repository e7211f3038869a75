"""What a checkpoint was trained on, as far as this project made it.

model path --> run directory around it --> its config --> the texts it trained on
                      ^                         |
                      +---- starting model <----+---> reward models, whose data count as theirs
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pyarrow import ipc, memory_map, parquet

from ultramed_rl.config import ContrastsConfig, RunConfig, load_any
from ultramed_rl.config.rewards import RewardTraining
from ultramed_rl.config.stages import (
    ConversationSource,
    PreferenceConfig,
    PreferenceSource,
    RewardConfig,
    SftConfig,
    StageConfig,
)
from ultramed_rl.data.chats import SourceNotes
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.identity import choose_held_out, content_key, mixture_copies, prompt_key
from ultramed_rl.data.preferences import ranked_key, read_preferences
from ultramed_rl.data.prompts import load_prompts, split_pool
from ultramed_rl.data.sources import read_rows
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import Message
from ultramed_rl.store import RunReader

Role = Literal["model", "reward"]
Chats = Iterable[Sequence[Message]]
Source = ConversationSource | PreferenceSource
# What stands in a run's directory, by which a run is told from any folder that holds a config.yaml.
_CONTENTS = ("rounds", "initial", "model", "best", "states", "openrlhf", "pairs.parquet")


@dataclass(frozen=True)
class TrainedPrompt:
    """A text that was trained on, where it is from, and whether the model itself saw it or its reward model."""

    text: str
    source: str
    role: Role = "model"


@dataclass(frozen=True)
class TrainedSource:
    """Some of what a run trained on, and where it is from."""

    run: str
    uri: str
    role: Role
    chats: Callable[[], Chats]  # read anew
    suffix: str = ""  # that the run's config added to its prompts

    @property
    def name(self) -> str:
        """The source in a report."""
        return f"{self.run}: {self.uri}" + _whose(self.role)

    def texts(self) -> Iterator[str]:
        """Its user turns, without the suffix."""
        added = self.suffix.strip()
        for messages in self.chats():
            for message in messages:
                if message["role"] == "user":
                    text = message["content"]
                    yield text.rstrip().removesuffix(added).rstrip() if added else text


@dataclass(frozen=True)
class _TrainedRun:
    """A run's directory."""

    path: Path
    name: str  # as the config places it, such as runs/recipe/sft
    base: Path  # what its relative paths start from
    inside: tuple[str, ...]  # the model's place in it

    def locate(self, uri: str) -> dict[str, str]:
        """The `uri` of one of the config's sources, a local one as seen from here."""
        local = "://" not in uri and not uri.startswith(("/", "~"))
        return {"uri": str(self.base / uri) if local else uri}


class Lineage:
    """What a model was trained on, through all runs back to a model that this project didn't make.

    Every source is read once here, to see that it can be read, and again by each `prompts`. Prompts that a run held out
    don't count; those that it dropped as too long may. A relative path in a run's config is taken from where the run
    was started, where the directory tells.

    `sources` can be read; `unknown` names models that this project didn't make, or scorers that it can't look
    into; `unreadable` names what can't be read any more, with the reason.

    Args:
        path: a checkpoint's directory, its run's directory, a hub id, or an `offline://` name.
    """

    def __init__(self, path: str) -> None:
        self.sources: list[TrainedSource] = []
        self.unknown: list[str] = []
        self.unreadable: list[str] = []
        self._visited: set[tuple[Path, tuple[str, ...], Role]] = set()
        self._follow(path, "model")

    def prompts(self) -> Iterator[TrainedPrompt]:
        """All user turns trained on, as a stream: the model's own first, then its reward models'.

        Raises:
            ValueError: a source that could be read before and can't be now.
        """
        for source in sorted(self.sources, key=lambda source: source.role != "model"):
            yield from (TrainedPrompt(text, source.name, source.role) for text in source.texts())

    @property
    def gaps(self) -> tuple[str, ...]:
        """In words, what the report must not claim to be clean."""
        unknown = (f"what {name} was trained on is not known" for name in self.unknown)
        return (*unknown, *(f"cannot be read any more: {what}" for what in self.unreadable))

    def _follow(self, path: str, role: Role, base: Path | None = None) -> None:
        """Add what the model at `path` was trained on; a relative path counts from `base`."""
        place = _run_directory(path, base or Path.cwd())
        if place is None:
            self._note(self.unknown, f"{path}{_whose(role)}")
            return
        directory, inside = place
        if (directory, inside, role) in self._visited:
            return
        self._visited.add((directory, inside, role))
        try:
            config = load_any(directory / "config.yaml")
        except (ValueError, OSError) as error:
            self._note(self.unreadable, f"{directory}{_whose(role)} ({_one_line(error)})")
            return
        # Where it was started is the part of its path that its config doesn't name; here, if it was moved.
        named = config.run.folder
        moved = named.is_absolute() or directory.parts[-len(named.parts) :] != named.parts
        started = Path.cwd() if moved else Path(*directory.parts[: -len(named.parts)])
        run = _TrainedRun(directory, config.run.place, started, inside)
        if isinstance(config, RunConfig):
            self._add_online(run, config, role)
        elif isinstance(config, SftConfig | RewardConfig | PreferenceConfig):
            self._add_stage(run, config, role)
        else:  # a kind that trains nothing
            self._note(self.unknown, f"{path}{_whose(role)}")

    def _add_stage(self, run: _TrainedRun, config: StageConfig, role: Role) -> None:
        """Kept data are what was trained on; without them the sources are read as the stage read them."""
        sources = [s.model_copy(update=run.locate(s.uri)) for s in config.data.sources]
        suffixes = [_suffix_of(source.uri) for source in sources]
        kept = _kept_data(run, config)
        if kept is not None:
            suffix = suffixes[0] if len(set(suffixes)) == 1 else ""
            self._add(run, ", ".join(source.uri for source in config.data.sources), role, kept, suffix)
        else:
            held_out = _held_out(run, config)
            for named, source, suffix in zip(config.data.sources, sources, suffixes, strict=True):
                chats = partial(_used_chats, source, config.run.seed, held_out)
                self._add(run, named.uri, role, chats, suffix)
        self._follow(config.model.path, role, run.base)

    def _add_online(self, run: _TrainedRun, config: RunConfig, role: Role) -> None:
        """The prompts of the rounds up to the checkpoint's; of all that are committed, for the whole run."""
        uris = ", ".join(source.uri for source in config.prompts.sources)
        suffix = config.prompts.suffix or ""
        if run.inside[:1] == ("initial",):  # the reward model that the run trained itself
            if config.reward.train is not None:
                self._add(run, uris, role, partial(_pool_chats, run, config, config.reward.train), suffix)
            self._follow(config.policy.path, role, run.base)
            return
        count, committed = len(RunReader(run.path).rounds), run.path / "rounds"
        if run.inside[:1] == ("rounds",):
            count = int(run.inside[1]) + 1 if run.inside[1:] and run.inside[1].isdigit() else count
        else:
            for folder in sorted(committed.glob("[0-9]*"))[count:]:
                self._note(self.unreadable, f"{run.name}: rounds/{folder.name} (not committed)")
        files = [committed / f"{index:03d}" / "prompts.parquet" for index in range(count)]
        for file in files:
            if not file.is_file():
                self._note(self.unreadable, f"{run.name}: {file.relative_to(run.path)} (no such file)")
        present = [file for file in files if file.is_file()]
        self._add(run, uris, role, partial(_kept_chats, present, "messages"), suffix)
        self._follow(config.policy.path, role, run.base)
        for path in config.reward.paths:
            own = str(run.path / "initial" / "reward_model")
            self._follow(own if path is None else path, "reward", run.base)
        for term in config.reward.terms:
            if term.type in ("http", "judge", "pairwise", "rubric", "python"):
                self._note(self.unknown, f"the {term.type} scorer {term.name!r} of {run.name} (reward model)")

    def _add(self, run: _TrainedRun, uri: str, role: Role, chats: Callable[[], Chats], suffix: str) -> None:
        source = TrainedSource(run.name, uri, role, chats, suffix)
        try:
            deque(source.texts(), maxlen=0)
        except (ValueError, OSError) as error:
            self._note(self.unreadable, f"{source.name} ({_one_line(error)})")
        else:
            self.sources.append(source)

    @staticmethod
    def _note(notes: list[str], note: str) -> None:
        if note not in notes:
            notes.append(note)


def _whose(role: Role) -> str:
    return " (reward model)" if role == "reward" else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _run_directory(path: str, base: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The run's directory around a path, and where the path is in it; None where this project didn't make it."""
    if "://" in path:
        return None
    place = (base / Path(path).expanduser()).resolve()
    for directory in (place, *place.parents):
        inside = place.relative_to(directory).parts
        if (directory / "config.yaml").is_file() and (not inside or inside[0] in _CONTENTS):
            return directory, inside
    return None


def _suffix_of(uri: str) -> str:
    """The suffix that the prompts of this project's own pairs carry; empty for other data."""
    place = _run_directory(uri, Path.cwd())
    try:
        config = load_any(place[0] / "config.yaml") if place else None
    except (ValueError, OSError):
        return ""
    return (config.prompts.suffix or "") if isinstance(config, RunConfig | ContrastsConfig) else ""


def _kept_data(run: _TrainedRun, config: StageConfig) -> Callable[[], Chats] | None:
    """What a stage wrote down to train on, where it is still there and is text; a native SFT keeps token ids."""
    column = "messages" if isinstance(config, SftConfig) else "prompt"
    rows, samples = (run.path / "data" / f"training.{ending}" for ending in ("jsonl", "arrow"))
    if rows.is_file():
        return lambda: (row[column] for row in read_rows(str(rows)))
    if samples.is_file() and not isinstance(config, SftConfig):
        return partial(_kept_chats, [samples], column)
    return None


def _kept_chats(files: Sequence[Path], column: str) -> Iterator[Sequence[Message]]:
    """One column of this project's own tables, without their token ids."""
    for file in files:
        if file.suffix == ".parquet":
            yield from parquet.read_table(file, columns=[column]).column(column).to_pylist()
        else:
            reader = ipc.open_file(memory_map(str(file)))
            for number in range(reader.num_record_batches):
                yield from reader.get_batch(number).column(column).to_pylist()


def _pool_chats(run: _TrainedRun, config: RunConfig, training: RewardTraining) -> Chats:
    """The prompts whose contrasts an online run's own reward model learnt: the last ones of the pool."""
    sources = [source.model_copy(update=run.locate(source.uri)) for source in config.prompts.sources]
    prompts = config.prompts.model_copy(update={"sources": sources})
    policy = config.policy
    if "://" not in policy.path and (run.base / policy.path).exists():
        policy = policy.model_copy(update={"path": str(run.base / policy.path)})
    tokenizer = chat_tokenizer(policy, learns=False)
    pool = split_pool(load_prompts(prompts, tokenizer.encode_chat), prompts.held_out, config.run.seed)
    return [prompt.messages for prompt in pool.training[-training.data.prompts :]]


def _used_chats(source: Source, seed: int, held_out: frozenset[str] = frozenset()) -> Chats:
    """A source's chats, without those that a weight below 1 leaves out and those of prompts that were held out."""
    if isinstance(source, PreferenceSource):
        ranked = read_preferences(source, Counter(), SourceNotes())
        chats = ((row.messages, ranked_key(row)) for row in ranked)
    else:
        conversations = read_conversations(source, Counter(), SourceNotes())
        chats = ((row.messages, content_key(row.messages)) for row in conversations)
    used = (messages for messages, key in chats if mixture_copies(source.weight, key, seed))
    return (messages for messages in used if not held_out or prompt_key(messages) not in held_out)


def _held_out(run: _TrainedRun, config: StageConfig) -> frozenset[str]:
    """Keys of the prompts that a stage held out, as `data.stage_data` chooses them."""
    data, seed = config.data, config.run.seed
    if not (data.held_out or data.evaluation_sources):
        return frozenset()

    def keys(sources: Sequence[Source]) -> Iterator[str]:
        for source in sources:
            placed = source.model_copy(update=run.locate(source.uri))
            yield from map(prompt_key, _used_chats(placed, seed))

    try:
        evaluated = set(keys(data.evaluation_sources))
        training = (key for key in keys(data.sources) if key not in evaluated)
        return frozenset(evaluated | choose_held_out(training, data.held_out, seed))
    except (ValueError, OSError):
        return frozenset()  # a source is gone, and with it the choice: rather count too much than too little
