"""What a config names on this machine: looked for before anything starts, without a GPU or a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ultramed_rl.cluster.inputs import OFFLINE
from ultramed_rl.config import AnyConfig
from ultramed_rl.config.base import Problems, texts_of
from ultramed_rl.config.document import why_unreadable
from ultramed_rl.config.recipe import REFERENCE, RecipeConfig
from ultramed_rl.config.rewards import FUNCTION
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.secrets import read_secret
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig
from ultramed_rl.data.sources import HUB
from ultramed_rl.recipes.run import stages_of
from ultramed_rl.tracking.console import say

COUNTED_BYTES = 32 * 2**20  # a pool of so much text is counted in a second or two
_TRIED = 50  # samples of each source that a dry run tokenises
_ROWS = {"uri", "input", "sources", "exemplars_from", "judged", "difficulties", "meta"}
_MODELS = {"path", "paths", "policies", "tokenizer"}


def check_inputs(config: AnyConfig | RecipeConfig) -> None:
    """Look for the environment variables, templates, local rows and models that a config or a recipe's stages name; local
    models are whole, and what their roles need. What earlier stages make is not there yet.

    Raises:
        Problems: what isn't there or cannot be read, a line each.
    """
    made = config.run.folder if isinstance(config, RecipeConfig) else None
    problems = []
    for name, stage in stages_of(config):
        try:
            _check_stage(stage, made)
        except Problems as error:
            problems += [f"stages.{name}.{line}" if name else line for line in error.problems]
    if problems:
        raise Problems(problems)


def _check_stage(config: AnyConfig, made: Path | None) -> None:
    """What is in the folder `made` comes of stages before this one."""
    problems = []
    mapping = config.to_mapping()
    for key, name, text in texts_of(mapping):
        if text.startswith(REFERENCE) or (made is not None and made in Path(text).parents):
            continue
        try:
            if name == "template":
                _check_template(mapping, key, text)
            else:
                _check_text(key, name, text)
        except (ValueError, OSError) as error:
            words = str(error)
            problems.append(words if words.startswith(key) else f"{key}: {words}")
    if problems:
        raise Problems(problems)
    from ultramed_rl.models.checks import check_models

    check_models(config, local=True)


def _check_text(key: str, name: str, text: str) -> None:
    if name.endswith("_env"):
        read_secret(text, key)
    elif name in _ROWS and text != OFFLINE:
        from ultramed_rl.data.sources import list_sources

        list_sources(text)
    elif FUNCTION.fullmatch(text) and name == "path":
        from ultramed_rl.rewards.function import check_function

        check_function(text, key)
    elif name in _MODELS:
        from ultramed_rl.models.files import check_model

        check_model(text)
    elif name in ("chat_template", "chat_templates"):
        from ultramed_rl.models.rendering import read_template

        read_template(text, key)
    elif name == "labels":
        reason = why_unreadable(Path(text))
        if reason is not None:
            raise ValueError(f"{key}={text!r}: {reason}; name a CSV file")
    elif name == "include_path" and not Path(text).expanduser().is_dir():
        raise ValueError(f"{key}={text!r}: no such folder; name one with task YAMLs")


def _check_template(mapping: Any, key: str, text: str) -> None:
    """What a judge is asked by: its section's `type` says whose; benchmarks have two judges without one."""
    section, parent = mapping, ""
    for parent in key.split(".")[:-1]:
        section = section[int(parent)] if isinstance(section, list) else section[parent]
    kind = section.get("type", parent)
    if kind in ("rubric", "grader"):
        from ultramed_rl.evaluation.rubrics import rubric_template

        rubric_template(text, key)
    elif kind == "pairwise":
        from ultramed_rl.rewards.pairwise import pairwise_template

        pairwise_template(text, key)
    elif kind == "judge" and "type" in section:
        from ultramed_rl.rewards.judge import judge_template

        judge_template(text, key)
    else:
        from ultramed_rl.evaluation.judging import statement_template

        statement_template(text, key)


def check_data(config: AnyConfig) -> None:
    """Open what a config reads on this machine: of each source the first rows, with the first samples tokenised where the
    model is here too; a benchmark's rows all. Where all sources are small, the rows or prompts are counted, and some
    held out as the run would; what is too long still counts there.

    Raises:
        ValueError: rows that cannot be used, or none left to train on.
    """
    from ultramed_rl.recipes.samples import view_sources

    for view in view_sources(config, _TRIED, local=True):
        say(view.describe())
        if view.problem:
            raise ValueError(view.problem)
    prompts: Any = getattr(config, "prompts", None)
    if isinstance(config, SftConfig | RewardConfig | PreferenceConfig):
        _check_stage_data(config)
    if prompts is None or not _is_small(prompts.sources):
        return
    from ultramed_rl.data.prompts import check_rounds, load_prompts, split_pool

    pool = split_pool(load_prompts(prompts, lambda _: []), prompts.held_out, config.run.seed)
    if isinstance(config, RunConfig):
        from ultramed_rl.rewards.rubric import check_rubrics

        check_rounds(pool, prompts, config.run.rounds)
        check_rubrics(config.reward.terms, [*pool.training, *pool.held_out])
        check_rubrics(config.evaluation.judges, pool.held_out)


def _check_stage_data(config: SftConfig | RewardConfig | PreferenceConfig) -> None:
    from ultramed_rl.data.stage_data import PreparedConversations, PreparedPreferences, Tokenizer

    if not _is_small([*config.data.sources, *config.data.evaluation_sources]):
        return
    none = cast(Tokenizer, None)  # the sources are read and split here, tokenised only when they are iterated
    if isinstance(config, SftConfig):
        PreparedConversations(config.data, none, config.model.max_length, config.run.seed)
    else:
        PreparedPreferences(config.data, none, config.model.max_length, config.run.seed)


def _is_small(sources: Sequence[Any]) -> bool:
    """Whether all rows are in files of this machine, of few bytes together."""
    from ultramed_rl.data.sources import local_files

    uris = [source.uri for source in sources]
    if any(uri.startswith((REFERENCE, HUB)) for uri in uris):
        return False
    return sum(file.stat().st_size for uri in uris for file in local_files(uri)) <= COUNTED_BYTES
