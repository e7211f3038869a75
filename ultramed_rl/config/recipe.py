"""A recipe: stages in one file, where a later one may take what an earlier one made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ultramed_rl.config.base import ConfigError, Problems, Section, show, texts_of
from ultramed_rl.config.document import Document, read_document
from ultramed_rl.config.factory import FURTHER_INPUTS
from ultramed_rl.config.limits import Label
from ultramed_rl.config.load import check_any, check_document, parse_config, validate
from ultramed_rl.config.run import AnyConfig, RunName
from ultramed_rl.kinds import KINDS

REFERENCE = "stage://"


class RecipeConfig(Section):
    """Stages in the order in which they run.

    A value `stage://NAME` stands for what the stage of that name made: a model's directory, or contrasts'
    pairs; of a data stage, `stage://NAME/FILE` is a file, as in stage://score/rows or stage://pairs/train. `shared`
    sections go into every stage that has such a section, under what it says itself.
    """

    type: Literal["recipe"] = "recipe"
    run: RunName
    shared: dict[Label, Any] = Field(default={}, description="sections that the stages have in common")
    stages: dict[Label, dict[Label, Any]] = Field(min_length=1, description="name: a config with its type")

    def problems(self) -> Iterator[str]:
        types = {name: str(stage.get("type")) for name, stage in self.stages.items()}
        used = {
            key for kind in KINDS.keys() & types.values() for key in KINDS[kind].config_class.model_fields
        }
        for key in self.shared:
            if key not in used:
                yield f"shared.{key}: no stage has such a section"
        earlier: dict[str, str] = {}
        for name, kind in types.items():
            if kind not in KINDS:
                yield f"stages.{name}.type={show(self.stages[name].get('type'))}: must be one of {', '.join(KINDS)}"
            else:
                for key, target in _references(_sections(self, name)):
                    if problem := _reference_problem(key, target, earlier):
                        yield f"stages.{name}.{key}={REFERENCE}{target}: {problem}"
                for key in ("name", "directory", "scratch"):
                    if key in _section(self.stages[name], "run"):
                        yield f"stages.{name}.run.{key}: a stage's {key} is the recipe's; remove the key"
            earlier[name] = kind


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RecipeConfig:
    """Read a recipe and validate it with all of its stages. Raises `ConfigError`, one line per problem."""
    return check_recipe(read_document(path, overrides))


def check_config(document: Document) -> AnyConfig | RecipeConfig:
    """The recipe or the config of another kind that a document holds. Raises `ConfigError`."""
    return check_recipe(document) if document.data.get("type") == "recipe" else check_any(document)


def check_recipe(document: Document) -> RecipeConfig:
    """The recipe that a document holds, with all of its stages. Raises `ConfigError`."""
    recipe = check_document(document, RecipeConfig)
    problems: list[str] = []
    for name in recipe.stages:
        try:
            validate(*_kind_and_data(recipe, name, {}))
        except Problems as error:
            problems += [document.tell(f"stages.{name}.{problem}") for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return recipe


def stage_config(recipe: RecipeConfig, name: str, outputs: Mapping[str, str]) -> AnyConfig:
    """A stage's whole config. `outputs`: what earlier stages made; a reference to one that isn't there stands for the model
    that this one starts from, whose shape it has, so that plans can be made before anything is run."""
    kind, data = _kind_and_data(recipe, name, outputs)
    return parse_config(data, f"stages.{name}", kind=kind)


def _kind_and_data(
    recipe: RecipeConfig, name: str, outputs: Mapping[str, str]
) -> tuple[type[AnyConfig], dict[str, Any]]:
    """A stage's kind and its values: its own over the shared ones, with what stands for earlier stages."""
    stage = _sections(recipe, name)
    run = stage.get("run", {})
    if isinstance(run, dict):
        shared = recipe.run.model_dump(include={"seed", "scratch", "publish_every_s"})
        stage["run"] = {**shared, **run, "name": name, "directory": recipe.run.place}
    made = {
        other: outputs.get(other) or f"{REFERENCE}{other}@{_starting_model(recipe, other)}"
        for other in recipe.stages
    }
    return KINDS[recipe.stages[name]["type"]].config_class, _resolve(stage, made)


def stage_inputs(recipe: RecipeConfig, name: str) -> list[str]:
    """The stages whose output a stage takes, sorted."""
    return sorted({target.partition("/")[0] for _, target in _references(_sections(recipe, name))})


def _starting_model(recipe: RecipeConfig, name: str) -> str:
    """The model that a stage starts from, through all stages before it."""
    stage = _sections(recipe, name)
    path = str((_section(stage, "model") or _section(stage, "policy")).get("path", ""))
    return _starting_model(recipe, path.removeprefix(REFERENCE)) if path.startswith(REFERENCE) else path


def _sections(recipe: RecipeConfig, name: str) -> dict[str, Any]:
    """A stage's own sections over the shared ones that its type has."""
    own = recipe.stages[name]
    fields = KINDS[own["type"]].config_class.model_fields
    return _merge({key: value for key, value in recipe.shared.items() if key in fields}, own)


def _section(stage: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section, or nothing where it is none: the stage's own config says so."""
    value = stage.get(key)
    return value if isinstance(value, dict) else {}


def _reference_problem(key: str, target: str, earlier: Mapping[str, str]) -> str | None:
    """Why a key cannot refer to a stage, given the types of the earlier ones."""
    target, _, file = target.partition("/")
    if target not in earlier:
        return f"no earlier stage has this name ({', '.join(earlier) or 'none'})"
    kind = earlier[target]
    made: str = KINDS[kind].makes if kind in KINDS else "a model"  # its own line says that there is none
    if made == "a folder of files" and not file:
        return f"a stage of type {kind!r} makes several files; name one, as in /rows"
    made = made.replace("a folder of files", "a file")
    takes_file = key.rpartition(".")[2] in ("uri", *FURTHER_INPUTS) or key.startswith("input.")
    wanted = "a file" if takes_file else "a model"
    return None if made == wanted else f"a stage of type {kind!r} makes {made}, not {wanted}"


def _references(stage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted keys whose values refer to a stage, and its name."""
    for key, _, text in texts_of(stage):
        if text.startswith(REFERENCE):
            yield key, text.removeprefix(REFERENCE)


def _resolve(node: Any, outputs: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _resolve(value, outputs) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, outputs) for value in node]
    if not isinstance(node, str) or not node.startswith(REFERENCE):
        return node
    name, inside, file = node.removeprefix(REFERENCE).partition("/")
    made = outputs.get(name, node)
    return f"{made}/{file}.jsonl" if inside else made


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
