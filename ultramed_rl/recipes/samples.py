"""The first samples of a config's sources, made as its run makes them: what `data show` prints and a dry run tries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ultramed_rl.config import AnyConfig, DataConfig, EvaluateConfig, RewardBenchConfig
from ultramed_rl.config.benchmarks import TaskChoice
from ultramed_rl.config.factory import (
    Decontaminate,
    Deduplicate,
    Paragraphs,
    Records,
    Report,
    Sample,
    Vignettes,
)
from ultramed_rl.config.factory_steps import Bench, Pairs
from ultramed_rl.config.models import Model
from ultramed_rl.config.recipe import REFERENCE
from ultramed_rl.config.rounds import Prompts
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.data import chats
from ultramed_rl.data.chats import MISFITS_ALLOWED, Misfit, SourceNotes
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.factory.import_rows import import_rows, import_vignettes
from ultramed_rl.data.factory.instructions import named_instruction, question_text
from ultramed_rl.data.factory.judgements import read_judged
from ultramed_rl.data.factory.paragraphs import count_words, cut_paragraphs
from ultramed_rl.data.factory.step import Ask, End, Fail, Keep, Row, Step, name_of
from ultramed_rl.data.preferences import read_pairs, read_preferences
from ultramed_rl.data.prompts import load_prompts, read_prompt_rows
from ultramed_rl.data.sources import HUB, cached_rows
from ultramed_rl.evaluation.suite import find_uris, load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.models.tokenizer import ChatTokenizer, chat_tokenizer
from ultramed_rl.records import ChatRequest, Message, PreferenceGroup, TokenizedChat
from ultramed_rl.stages.data.rows import read_input
from ultramed_rl.stages.data.run import make_step
from ultramed_rl.stages.reward_bench import prepare_bench
from ultramed_rl.stages.run import prepare_samples
from ultramed_rl.tracking import Progress

SAMPLED = 1000  # rows of each source that are read
_LONGEST = 2000  # characters of a row as it stands in a file
Part = tuple[str, bool]  # text, and whether it is learnt


@dataclass(frozen=True)
class ShownSample:
    """One sample as text, in parts; `about` says what it is, and its lengths."""

    name: str
    about: str
    parts: tuple[Part, ...]


@dataclass
class SourceView:
    """A source's first rows: what was noted of them, samples, and what would stop the run."""

    uri: str
    notes: SourceNotes = field(default_factory=SourceNotes)
    samples: list[ShownSample] = field(default_factory=list)
    problem: str = ""
    is_here: bool = True

    def describe(self) -> str:
        """Rows, misfits by reason with the first one's row, and the columns that nobody reads, in lines."""
        if not self.is_here:
            return f"{self.uri}: not in this machine's cache of data sets, so nothing of it is tried; ultramed-rl data show asks the hub"
        notes = self.notes
        fit = f"{notes.rows - notes.misfits.total()} of the first {notes.rows} rows fit"
        lines = [f"{self.uri}: {fit if notes.rows else 'no row was read'}"]
        lines += [
            f"  {count} {name}: {notes.examples.get(name, '')}".rstrip(": ")
            for name, count in notes.misfits.items()
        ]
        if notes.unread:
            named = ", ".join(f"{name} ({count} rows)" for name, count in notes.unread.items())
            lines.append(f"  not read: {named}")
        return "\n".join(lines)


def view_sources(config: AnyConfig, shown: int, *, local: bool = False) -> Iterator[SourceView]:
    """Each source of a config, without those that another stage makes.

    Args:
        shown: samples of each source that are tokenised.
        local: only what is on this machine, of the hub what is in its cache; where the model isn't, nothing is tokenised.
    """
    views: list[tuple[str, Callable[[str, SourceNotes], Iterable[ShownSample]]]]
    if isinstance(config, DataConfig):
        views = [(uri, partial(_read_inputs, config)) for uri in config.input]
    else:
        sources, read, make = _readers(config, local)
        views = [(source.uri, partial(_read_source, source, read, make)) for source in sources]
        for choice in getattr(getattr(config, "benchmarks", None), "tasks", ()):
            uris = find_uris(find_task(choice.name), choice.uri)
            if not (local and any(uri.startswith(HUB) for uri in uris)):
                views.append((choice.uri or uris[0], partial(_read_task, choice)))
    for uri, samples in views:
        if uri.startswith(REFERENCE):
            continue
        view = SourceView(uri)
        try:
            place = cached_rows(uri) if local and uri.startswith(HUB) else uri
            view.is_here = place is not None
            chats.logger.disabled = True  # the notes have what it would say, more than once
            view.samples = [] if place is None else list(islice(samples(place, view.notes), shown))
        except ValueError as error:
            view.problem = str(error)
        finally:
            chats.logger.disabled = False
        yield view


def _read_task(choice: TaskChoice, _: str, notes: SourceNotes) -> Iterator[ShownSample]:
    """A benchmark's questions, all of them, as they are asked."""
    task = find_task(choice.name)
    asked = load_items(task, choice.uri, first_place=choice.first_place)
    notes.rows += asked.counts["rows"]
    notes.misfits.update(
        {name.removeprefix("misfit_"): n for name, n in asked.counts.items() if name.startswith("misfit_")}
    )
    for item in asked.items:
        key = f"\n-- the key: {item.answer}" if item.answer else ""
        yield ShownSample(
            f"{task.name}/{item.item_id}", f"a question of form {task.form}", ((task.ask(item) + key, False),)
        )


def _read_source(source: Any, read: Any, make: Any, uri: str, notes: SourceNotes) -> Iterator[ShownSample]:
    first = source.model_copy(update={"uri": uri, "limit": min(source.limit or SAMPLED, SAMPLED)})
    for _ in read(first, Counter(), notes):
        pass
    if make is not None:
        yield from make(first)


def _readers(config: AnyConfig, local: bool) -> tuple[Sequence[Any], Any, Any]:
    """A config's sources, what reads their rows, and what makes samples of one; None where no tokenizer is at hand."""
    match config:
        case SftConfig() | RewardConfig() | PreferenceConfig():
            sources = [*config.data.sources, *config.data.evaluation_sources]
            read = read_conversations if isinstance(config, SftConfig) else read_preferences
            tokenizer = _tokenizer(config.model, local)
            return sources, read, tokenizer and partial(_stage_samples, config, tokenizer)
        case RewardBenchConfig():
            here = _is_at_hand(config.model.path, local)
            return [config.data], read_pairs, partial(_benched_samples, config) if here else None
    prompts: Prompts | None = getattr(config, "prompts", None)
    if prompts is None:
        return [], None, None
    policy: Any = getattr(config, "policy", None)
    learns = not isinstance(config, EvaluateConfig)
    if isinstance(config, EvaluateConfig):  # as the first policy is asked
        name, path = next(iter(config.policies.items()))
        template = config.chat_templates.get(name)
        policy = Model(path=path, chat_template=template, **config.policy.model_dump())
    tokenizer = _tokenizer(policy, local, learns=learns) if isinstance(policy, Model) else None
    return prompts.sources, read_prompt_rows, tokenizer and partial(_asked_samples, prompts, tokenizer)


def _is_at_hand(path: str, local: bool) -> bool:
    """Whether a model can be read: no stage has to make it, and if `local`, it is on this machine."""
    return Path(path).expanduser().is_dir() if local else not path.startswith(REFERENCE)


def _tokenizer(model: Model, local: bool, *, learns: bool = True) -> ChatTokenizer | None:
    """The model's, of a stage's the one that it starts from; None where it isn't here and none but those count."""
    path = model.path.partition("@")[2] if model.path.startswith(REFERENCE) else model.path
    model = model.model_copy(update={"path": path})
    return chat_tokenizer(model, learns=learns) if _is_at_hand(path, local) else None


# -- what a step of the data factory makes of its input before any model is asked ---------------------------


def _read_inputs(config: DataConfig, uri: str, notes: SourceNotes) -> list[ShownSample]:
    """Records, passages, what a model is asked, or rows as they stand where a step needs them all.

    Raises:
        ValueError: too many of the rows are none that the step reads.
    """
    alone = config.model_copy(update={"input": [uri], "limit": min(config.limit or SAMPLED, SAMPLED)})
    rows = read_input(alone)
    match config.step:
        case Records() as step:
            return [*map(_record, import_rows(alone, step, Counter(), notes))]
        case Vignettes() as step:
            return [*map(_record, import_vignettes(alone, step, Counter(), notes))]
        case Paragraphs() as step:
            passages = cut_paragraphs(_counted(rows, notes), step, Counter())
            return [
                ShownSample(one["id"], f"{count_words(one['text'])} words", ((one["text"], False),))
                for one in passages
            ]
        case Deduplicate(columns=columns) | Decontaminate(columns=columns):
            read = lambda row: _named(*named_instruction(row, columns))
            return _each(rows, read, 0.0, config, notes)
        case Pairs():
            return _each(rows, lambda row: _as_it_stands(vars(read_judged(row))), 0.0, config, notes)
        case Report():
            read = lambda row: _named(name_of(row), question_text(row))
            return _each(rows, read, MISFITS_ALLOWED, config, notes)
        case Sample() | Bench():
            return [*map(_as_it_stands, _counted(rows, notes))]
        case step:
            # Solved examples are shown later, and made by other stages.
            bare = step.model_copy(update={"exemplars": 0} if hasattr(step, "exemplars") else {})
            asking = make_step(alone.model_copy(update={"step": bare}))
            return _each(rows, partial(_first_asked, asking), config.max_failed_share, config, notes)


def _counted(rows: Iterator[Row], notes: SourceNotes) -> Iterator[Row]:
    for row in rows:
        notes.rows += 1
        yield row


def _each(
    rows: Iterator[Row],
    read: Callable[[Row], ShownSample],
    allowed: float,
    config: DataConfig,
    notes: SourceNotes,
) -> list[ShownSample]:
    samples = []
    for row in _counted(rows, notes):
        try:
            samples.append(read(row))
        except ValueError as error:
            name = error.name if isinstance(error, Misfit) else "row"
            notes.misfits[name] += 1
            notes.examples.setdefault(name, f"row {notes.rows}: {error}")
    if (misfits := notes.misfits.total()) > allowed * notes.rows:
        named = ", ".join(f"{count} {name}" for name, count in notes.misfits.items())
        first = next(iter(notes.examples.values()))
        raise ValueError(
            f"input {config.input[0]!r}: {misfits} of the first {notes.rows} rows are none that {config.step.type} reads ({named}; "
            f"{first}); at most {100 * allowed:.3g}% may: name rows of its form, or clean the file"
        )
    return samples


def _first_asked(step: Step, row: Row) -> ShownSample:
    """What a step asks about a row first; of one that asks nothing, what it makes. Raises Misfit for a row that it doesn't read."""
    course = step(row, Ask(row))
    try:
        request: ChatRequest = course.send(None)
    except StopIteration as ended:
        end: End = ended.value
        if isinstance(end, Fail):
            raise Misfit(end.detail or end.reason, name=end.reason) from None
        return (
            _as_it_stands(end.rows[0])
            if isinstance(end, Keep)
            else _named(name_of(row), f"dropped: {end.reason}")
        )
    course.close()
    text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in request.messages)
    return ShownSample(name_of(row), f"asked first; {_roles(request.messages)}", ((text, False),))


def _record(row: Row) -> ShownSample:
    turns = [turn["value"] for turn in row["conversations"]]
    key = f"\n-- the key: {row['answer']}" if row["answer"] else ""
    replies = "".join(f"\n-- the answer: {text}" for text in turns[1:])
    return ShownSample(row["id"], f"a record of type {row['type']}", ((turns[0] + key + replies, False),))


def _named(name: str, text: str) -> ShownSample:
    return ShownSample(name, "the text that is read", ((text, False),))


def _as_it_stands(row: Row) -> ShownSample:
    text = json.dumps(row, ensure_ascii=False, default=str)[:_LONGEST]
    return ShownSample(name_of(row), f"columns {', '.join(row)}", ((text, False),))


# -- samples by kind of stage ------------------------------------------------------------------------------


def _stage_samples(config: Any, tokenizer: ChatTokenizer, source: Any) -> Iterator[ShownSample]:
    alone = {"sources": [source], "evaluation_sources": [], "held_out": 0}
    data = config.data.model_copy(update=alone)
    prepared = prepare_samples(config.model_copy(update={"data": data}), tokenizer)
    decode = tokenizer.backend.decode
    for row, sample in zip(prepared.training_rows(), prepared.training(), strict=False):
        yield _chat(sample, row, decode) if isinstance(sample, TokenizedChat) else _group(sample, decode)


def _benched_samples(config: RewardBenchConfig, source: Any) -> Iterator[ShownSample]:
    bench = prepare_bench(config.model_copy(update={"data": source}), Progress())
    yield from (_group(pair, bench.tokenizer.backend.decode) for pair in bench.pairs)


def _asked_samples(prompts: Prompts, tokenizer: ChatTokenizer, source: Any) -> Iterator[ShownSample]:
    source = source.model_copy(update={"share": None})
    alone = prompts.model_copy(update={"sources": [source]})
    for prompt in load_prompts(alone, tokenizer.encode_chat, tokenizer.markers).training:
        text = tokenizer.backend.decode(list(prompt.token_ids))
        answer = f"\n-- the data's answer: {prompt.answer}" if prompt.answer else ""
        about = f"{prompt.kind}; {_roles(prompt.messages)}; {len(prompt.token_ids)} tokens"
        yield ShownSample(prompt.prompt_id, about, ((text + answer, False),))


def _chat(sample: TokenizedChat, row: Any, decode: Callable[[list[int]], str]) -> ShownSample:
    marked = groupby(zip(sample.learned, sample.token_ids, strict=True), key=lambda pair: pair[0])
    parts = tuple((decode([token for _, token in pairs]), learnt) for learnt, pairs in marked)
    roles = _roles(row.messages)
    about = f"{sample.kind}; {roles}; {len(sample.token_ids)} tokens, {sum(sample.learned)} learnt"
    return ShownSample(sample.conversation_id, about, parts)


def _group(group: PreferenceGroup, decode: Callable[[list[int]], str]) -> ShownSample:
    prompt = group.prompt
    parts: list[Part] = [(decode(list(prompt.token_ids)), False)]
    for place, (answer, reward) in enumerate(zip(group.completions, group.rewards, strict=True)):
        wanted = "wanted" if place < group.desirable else "unwanted"
        parts.append((f"\n-- {wanted}, score {reward:g}, {len(answer.token_ids)} tokens: ", False))
        parts.append((decode(list(answer.token_ids)), True))
    roles = _roles(prompt.messages)
    about = f"{prompt.kind}; {roles}; prompt {len(prompt.token_ids)} tokens, {len(group.completions)} answers"
    return ShownSample(prompt.prompt_id, about, tuple(parts))


def _roles(messages: Sequence[Message]) -> str:
    return " ".join(message["role"] for message in messages)
