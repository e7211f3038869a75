"""What a checkpoint was trained on, as far as this project made it.

model path --> run directory around it --> its config --> the texts it trained on
                      ^                         |
                      +---- starting model <----+---> reward models, whose data count as theirs
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ultramed_rl.config import AnyConfig, ContrastsConfig, RunConfig, load_any
from ultramed_rl.config.models import RewardTraining
from ultramed_rl.config.stages import (
    ConversationSource,
    PreferenceConfig,
    PreferenceSource,
    RewardConfig,
    SftConfig,
    StageConfig,
)
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.identity import choose_held_out, content_key, mixture_copies, prompt_key
from ultramed_rl.data.preferences import ranked_key, read_preferences
from ultramed_rl.data.prompts import load_prompts, split_pool
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.contamination.search import Role, TrainedPrompt
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import Message
from ultramed_rl.store import RunReader

Chats = Iterable[Sequence[Message]]
Source = ConversationSource | PreferenceSource
# What stands in a run's directory, by which a run is told from any folder that holds a config.yaml.
_CONTENTS = ("rounds", "initial", "model", "best", "states", "openrlhf", "pairs.parquet")


@dataclass(frozen=True)
class TrainedSource:
    """Some of what a run trained on: where it is from, and how many user turns it holds."""

    run: str
    uri: str
    role: Role
    prompts: int
    chats: Callable[[], Chats] = field(repr=False, compare=False)
    suffix: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """The source in a report."""
        return f"{self.run}: {self.uri}" + (" (reward model)" if self.role == "reward" else "")

    def texts(self) -> Iterator[str]:
        """Its user turns, read anew, without the suffix that the run's config added."""
        for messages in self.chats():
            for message in messages:
                if message["role"] == "user":
                    yield _without_suffix(message["content"], self.suffix)


@dataclass(frozen=True)
class Lineage:
    """What is known of a model's training data.

    `sources` can be read; `unknown` names models that this project didn't make, or scorers that it can't look
    into; `unreadable` names what can't be read any more, with the reason.
    """

    model: str
    sources: tuple[TrainedSource, ...]
    unknown: tuple[str, ...]
    unreadable: tuple[str, ...]

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
        return (
            *(f"what {name} was trained on is not known" for name in self.unknown),
            *(f"cannot be read any more: {what}" for what in self.unreadable),
        )


def training_prompts(path: str) -> Lineage:
    """Find out what a model was trained on, through all runs back to a model that this project didn't make.

    Every source is read once here, to count it and to see that it can be read, and again by each `prompts`.
    Prompts that a run held out don't count; those that it dropped as too long may. A relative path in a run's
    config is taken from where the run was started, where the directory tells.

    Args:
        path: a checkpoint's directory, its run's directory, a hub id, or an `offline://` name.
    """
    walk = _Walk()
    walk.follow(path, "model")
    return Lineage(path, tuple(walk.sources), tuple(walk.unknown), tuple(walk.unreadable))


@dataclass(frozen=True)
class _Run:
    """A run's directory, its config, what its relative paths start from, and the model's place inside."""

    path: Path
    config: AnyConfig
    base: Path
    inside: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the config places it, such as runs/recipe/sft."""
        return self.config.run.url or str(self.config.run.folder)

    def locate(self, uri: str) -> str:
        """A path or URI of the config; a local one as seen from here."""
        local = "://" not in uri and not uri.startswith(("/", "~"))
        return str(self.base / uri) if local else uri


class _Walk:
    """The runs gone through so far, and what they trained on."""

    def __init__(self) -> None:
        self.sources: list[TrainedSource] = []
        self.unknown: list[str] = []
        self.unreadable: list[str] = []
        self._visited: set[tuple[Path, tuple[str, ...], Role]] = set()

    def follow(self, path: str, role: Role, base: Path | None = None) -> None:
        """Add what the model at `path` was trained on; a relative path counts from `base`."""
        whose = " (reward model)" if role == "reward" else ""
        found = _run_directory(path, base or Path.cwd())
        if found is None:
            self._note(self.unknown, f"{path}{whose}")
            return
        directory, inside = found
        if (directory, inside, role) in self._visited:
            return
        self._visited.add((directory, inside, role))
        try:
            config = load_any(directory / "config.yaml")
        except (ValueError, OSError) as error:
            self._note(self.unreadable, f"{directory}{whose} ({_one_line(error)})")
            return
        run = _Run(directory, config, _started_in(directory, config), inside)
        if isinstance(config, RunConfig):
            self._add_online(run, config, role)
        elif isinstance(config, SftConfig | RewardConfig | PreferenceConfig):
            self._add_stage(run, config, role)
        else:  # a kind that trains nothing
            self._note(self.unknown, f"{path}{whose}")

    # -- stages --------------------------------------------------------------------------------------------

    def _add_stage(self, run: _Run, config: StageConfig, role: Role) -> None:
        """Kept data are what was trained on; without them the sources are read as the stage read them."""
        kept = _kept_data(run, config)
        sources: Sequence[Source] = config.data.sources
        uris = [run.locate(source.uri) for source in sources]
        suffixes = {_suffix_of(uri) for uri in uris}
        if kept is not None:
            suffix = suffixes.pop() if len(suffixes) == 1 else ""
            self._add(run, ", ".join(source.uri for source in sources), role, kept, suffix)
        else:
            held_out = _held_out(run, config)
            for source, uri in zip(sources, uris, strict=True):
                placed = source.model_copy(update={"uri": uri})
                chats = partial(_trained_chats, placed, held_out, config.run.seed)
                self._add(run, source.uri, role, chats, _suffix_of(uri))
        self.follow(config.model.path, role, run.base)

    # -- online --------------------------------------------------------------------------------------------

    def _add_online(self, run: _Run, config: RunConfig, role: Role) -> None:
        uris = ", ".join(source.uri for source in config.prompts.sources)
        suffix = config.prompts.suffix or ""
        if run.inside[:1] == ("initial",):  # the reward model that the run trained itself
            if config.reward.train is not None:
                self._add(run, uris, role, partial(_pool_chats, run, config, config.reward.train), suffix)
            self.follow(config.policy.path, role, run.base)
            return
        committed = len(RunReader(run.path).rounds)
        files = _round_files(run, committed)
        folders = [] if run.inside[:1] == ("rounds",) else sorted((run.path / "rounds").glob("[0-9]*"))
        for folder in folders[committed:]:
            self._note(self.unreadable, f"{run.name}: rounds/{folder.name} (not committed)")
        for file in files:
            if not file.is_file():
                self._note(self.unreadable, f"{run.name}: {file.relative_to(run.path)} (no such file)")
        present = [file for file in files if file.is_file()]
        self._add(run, uris, role, partial(_kept_chats, present, "messages"), suffix)
        self.follow(config.policy.path, role, run.base)
        self._follow_scorers(run, config)

    def _follow_scorers(self, run: _Run, config: RunConfig) -> None:
        for path in config.reward.paths:
            self.follow(
                str(run.path / "initial" / "reward_model") if path is None else path, "reward", run.base
            )
        for term in config.reward.terms:
            if term.type in ("http", "judge"):
                self._note(self.unknown, f"the {term.type} scorer {term.name!r} of {run.name} (reward model)")

    # -- what is found -------------------------------------------------------------------------------------

    def _add(self, run: _Run, uri: str, role: Role, chats: Callable[[], Chats], suffix: str) -> None:
        source = TrainedSource(run.name, uri, role, 0, chats, suffix)
        try:
            count = sum(1 for _ in source.texts())
        except (ValueError, OSError) as error:
            self._note(self.unreadable, f"{source.name} ({_one_line(error)})")
        else:
            self.sources.append(TrainedSource(run.name, uri, role, count, chats, suffix))

    @staticmethod
    def _note(notes: list[str], note: str) -> None:
        if note not in notes:
            notes.append(note)


# -- directories -------------------------------------------------------------------------------------------


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


def _started_in(directory: Path, config: AnyConfig) -> Path:
    """Where a run was started: the part of its path that its config doesn't name."""
    named = config.run.folder
    if named.is_absolute() or directory.parts[-len(named.parts) :] != named.parts:
        return Path.cwd()  # it was moved
    return Path(*directory.parts[: -len(named.parts)])


def _round_files(run: _Run, committed: int) -> list[Path]:
    """The prompts of the rounds up to the checkpoint's; of all that are committed, for the whole run."""
    one = run.inside[:1] == ("rounds",) and len(run.inside) > 1 and run.inside[1].isdigit()
    count = int(run.inside[1]) + 1 if one else committed
    return [run.path / "rounds" / f"{index:03d}" / "prompts.parquet" for index in range(count)]


def _suffix_of(uri: str) -> str:
    """The suffix that the prompts of this project's own pairs carry; empty for other data."""
    found = _run_directory(uri, Path.cwd())
    try:
        config = load_any(found[0] / "config.yaml") if found else None
    except (ValueError, OSError):
        return ""
    return (config.prompts.suffix or "") if isinstance(config, RunConfig | ContrastsConfig) else ""


# -- texts -------------------------------------------------------------------------------------------------


def _kept_data(run: _Run, config: StageConfig) -> Callable[[], Chats] | None:
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
    from pyarrow import ipc, memory_map, parquet

    for file in files:
        if file.suffix == ".parquet":
            yield from parquet.read_table(file, columns=[column]).column(column).to_pylist()
        else:
            reader = ipc.open_file(memory_map(str(file)))
            for number in range(reader.num_record_batches):
                yield from reader.get_batch(number).column(column).to_pylist()


def _pool_chats(run: _Run, config: RunConfig, training: RewardTraining) -> Chats:
    """The prompts whose contrasts an online run's own reward model learnt: the last ones of the pool."""
    sources = [s.model_copy(update={"uri": run.locate(s.uri)}) for s in config.prompts.sources]
    prompts = config.prompts.model_copy(update={"sources": sources})
    placed = run.base / config.policy.path
    path = str(placed) if "://" not in config.policy.path and placed.exists() else config.policy.path
    tokenizer = chat_tokenizer(config.policy.model_copy(update={"path": path}), learns=False)
    pool = split_pool(load_prompts(prompts, tokenizer.encode_chat), prompts.held_out, config.run.seed)
    return [prompt.messages for prompt in pool.training[-training.data.prompts :]]


def _used_chats(source: Source, seed: int) -> Iterator[Sequence[Message]]:
    """A source's chats, without those that a weight below 1 leaves out."""
    if isinstance(source, PreferenceSource):
        for ranked in read_preferences(source, Counter(), quiet=True):
            if mixture_copies(source.weight, ranked_key(ranked), seed):
                yield ranked.messages
    else:
        for conversation in read_conversations(source, Counter(), quiet=True):
            if mixture_copies(source.weight, content_key(conversation.messages), seed):
                yield conversation.messages


def _trained_chats(source: Source, held_out: frozenset[str], seed: int) -> Chats:
    return (chat for chat in _used_chats(source, seed) if prompt_key(chat) not in held_out)


def _held_out(run: _Run, config: StageConfig) -> frozenset[str]:
    """Keys of the prompts that a stage held out, as `data.stage_data` chooses them."""
    data, seed = config.data, config.run.seed
    if not (data.held_out or data.evaluation_sources):
        return frozenset()

    def keys(sources: Sequence[Source]) -> Iterator[str]:
        for source in sources:
            placed = source.model_copy(update={"uri": run.locate(source.uri)})
            yield from (prompt_key(chat) for chat in _used_chats(placed, seed))

    try:
        evaluated = set(keys(data.evaluation_sources))
        training = (key for key in keys(data.sources) if key not in evaluated)
        return frozenset(evaluated | choose_held_out(training, data.held_out, seed))
    except (ValueError, OSError):
        return frozenset()  # a source is gone, and with it the choice: rather count too much than too little


def _without_suffix(text: str, suffix: str) -> str:
    added = suffix.strip()
    return text.rstrip().removesuffix(added).rstrip() if added else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
