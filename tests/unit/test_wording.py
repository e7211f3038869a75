"""What users read most, word for word and once: all other tests hold to keys, values, ids and numbers.

A message is provoked as a user would provoke it, and stands here as it is printed, with ROOT for the test's folder, HOST for
a server's address and DIGEST for twelve digits of one. Each is one line with a value, the rule that it breaks, and what to do.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from typer.testing import CliRunner

from tests.fake_api import Said, fake_api
from tests.gathering import Round
from tests.rounds import finish_round
from tests.tiny import make_questions, tiny_run
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import Engine
from ultramed_rl.cli import app
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import load_any, parse_config
from ultramed_rl.config.generation import Endpoint
from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.factory.api.generator import ApiGenerator
from ultramed_rl.data.pool import check_rounds, split_pool
from ultramed_rl.data.prompts import load_prompts
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.records import ChatRequest, Completion, PreferenceGroup, Prompt
from ultramed_rl.store import RoundRecord, RunDirectory
from ultramed_rl.store.ledger import Ledger

Provoke = Callable[[Path], object]
Wording = tuple[str, Provoke, str]


def config(**changes: Any) -> Provoke:
    """A run with these changes, read from my.yaml."""
    return lambda root: parse_config(tiny_run(root, **changes), "my.yaml")


def file(text: str, *overrides: str) -> Provoke:
    """A config file of this text."""

    def read(root: Path) -> object:
        (root / "my.yaml").write_text(text)
        return load_any(root / "my.yaml", overrides)

    return read


# -- configs -----------------------------------------------------------------------------------------------

ONE_GPU = {"device": "cuda", "devices_per_node": 1, "device_memory_gib": 24.0}
LLAMA_8B = {
    "policy__path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "reward__path": "sfairXC/FsfairX-LLaMA3-RM-v0.1",
}


def plan(**changes: Any) -> Provoke:
    return lambda root: make_plan(parse_config(tiny_run(root, **changes)))


CONFIGS: list[Wording] = [
    ("unknown key", config(run__sed=1),
     "my.yaml: run.sed: unknown key; did you mean 'seed'? (allowed: name, directory, scratch, publish_every_s, seed, rounds, keep_checkpoints)"),
    ("key of another objective", config(objective={"type": "kto_pair", "label_smoothing": 0.1}),
     "my.yaml: objective.label_smoothing: unknown key (allowed: type, beta)"),
    ("wrong choice", config(pairs__rejected="wrst"),
     "my.yaml: pairs.rejected='wrst': input should be 'worst', 'random' or 'near_low'; did you mean 'worst'?"),
    ("wrong type", config(training__epochs="two"),
     "my.yaml: training.epochs='two': input should be a valid integer"),
    ("no section", config(training=None),
     "my.yaml: training=null: must be a section of keys; see docs/configuration.md"),
    ("too small", config(sampling__n=1),
     "my.yaml: sampling.n=1: input should be greater than or equal to 2"),
    ("not positive", config(training__learning_rate=-1.0),
     "my.yaml: training.learning_rate=-1.0: input should be greater than 0"),
    ("unknown kind", config(objective__type="dop"),
     "my.yaml: objective.type='dop': must be one of dpo, robust_dpo, ipo, hinge, kto, kto_pair, nca_pair, nca, infonca, simpo, orpo; did you mean 'dpo'?"),
    ("kind missing", config(prompts__sources=[{"uri": "a.jsonl"}]),
     "my.yaml: prompts.sources.0.type: required, but missing"),
    ("key missing", config(prompts__sources=[{"type": "question"}]),
     "my.yaml: prompts.sources.0.uri: required, but missing"),
    ("lengths that exceed the context", config(policy__max_length=100),
     "my.yaml: prompts.max_prompt_tokens=96: with sampling.max_new_tokens=16 it exceeds policy.max_length=100; at most 84 fit: shorten one or raise policy.max_length"),
    ("no reward", config(reward__path=None),
     "my.yaml: reward: exactly one of reward.path (a trained reward model), reward.ensemble (several) and reward.train (train one in this run) must be set, or none of them beside reward.terms"),
    ("engines on CPU", config(cluster__rollout__kv_cache_gib=None),
     "my.yaml: cluster.rollout.kv_cache_gib=null: must be set on cluster.device=cpu, say 1.0"),
    ("reference of an objective without one", config(objective={"type": "simpo"}),
     "my.yaml: reference: objective.type=simpo has no reference model; remove the section (or override: reference=null)"),
    ("pairs of a listwise objective", config(objective={"type": "nca"}, pairs__rejected="worst"),
     "my.yaml: pairs.rejected='worst': objective.type=nca takes all answers of a prompt; remove the key (or override: pairs.rejected=null)"),
    ("batch of one under KTO", config(objective={"type": "kto"}, training__batch_size=1, cluster__policy__ranks=1),
     "my.yaml: training.batch_size=1: kto estimates a KL over the batch and needs at least 2 pairs; raise it"),
    ("reference of adapters", config(policy__lora={"rank": 4}, reference__update="ema"),
     "my.yaml: reference.update='ema': a LoRA policy's reference is its base model; use reference.update=initial or policy.lora=null"),
    ("4-bit in parts", config(policy__lora={"quantize": "nf4"}, cluster__policy__zero_stage=3),
     "my.yaml: policy.lora.quantize='nf4': 4-bit weights cannot be partitioned; use cluster.policy.zero_stage <= 2"),
    ("early without devices", config(training__early=True, cluster__layout="colocated"),
     "my.yaml: training.early=true: cluster.layout=colocated gives the policy no devices of its own; use disaggregated, or training.early=false"),
    ("type of no run", file("type: sfft\n"),
     "ROOT/my.yaml: type='sfft': must be one of online, sft, reward, preference, contrasts, evaluate, reward_bench, data; did you mean 'sft'?"),
    ("no mapping", file("- a\n"),
     "ROOT/my.yaml: must be a mapping of sections, not list; see configs/ for complete examples"),
    ("key twice", file("run: {name: a}\nrun: {name: b}\n"),
     "ROOT/my.yaml: not valid YAML; mend it: key 'run' stands twice (line 2)"),
    ("override that is none", file("run: {name: a}\n", "epochs"),
     "override 'epochs': must read section.key=value, as in training.epochs=2"),
    ("override below a value", file("run: {name: a}\n", "run.name.deeper=1"),
     "override 'run.name.deeper=1': 'name' is a value, not a section; set the value itself"),
    ("too few devices", plan(**LLAMA_8B, cluster={**ONE_GPU, "layout": "disaggregated"}),
     "cluster.policy: 1 processes x 1 devices = 1, but 0 of 1 x 1 = 1 devices are free (roles before it took the rest); lower its number, raise cluster.nodes, or use cluster.layout=colocated"),
    ("too little memory", plan(**LLAMA_8B, cluster=ONE_GPU),
     "cluster.device_memory_gib=24 per GPU: too little for policy: weights 29.9 + gradients 29.9 + optimizer 59.8 + activations 3.2 = 122.9 GiB; raise cluster.policy.zero_stage or cluster.policy.ranks, set cluster.policy.offload_optimizer, or lower training.micro_batch_tokens, prompts.max_prompt_tokens or sampling.max_new_tokens"),
]  # fmt: skip

# -- data and models ---------------------------------------------------------------------------------------


def rows(*lines: str) -> Provoke:
    """A source of chats with these lines."""

    def read(root: Path) -> object:
        path = root / "chats.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        return list(read_conversations(ConversationSource(uri=str(path)), Counter()))

    return read


def source(uri: str) -> Provoke:
    return lambda root: list(read_rows(uri.replace("ROOT", str(root))))


def pool(**changes: Any) -> Provoke:
    """The pool of 24 short questions."""

    def load(root: Path) -> object:
        make_questions(root / "questions.jsonl")
        run = parse_config(tiny_run(root, **changes))
        found = split_pool(load_prompts(run.prompts, lambda messages: [1] * 40), run.prompts.held_out, 7)
        return check_rounds(found, run.prompts, run.run.rounds)

    return load


def broken_pairs(root: Path) -> object:
    def answer(*tokens: int) -> Completion:
        return Completion("p1", tokens[0], "text", tokens, "stop", 0.0, 0)

    prompt = Prompt("p1", (), (1, 2, 3))
    equal = PreferenceGroup(prompt, (answer(4, 5), answer(4, 5)), (1.0, 0.0))
    outside = PreferenceGroup(prompt, (answer(4), answer(70)), (1.0, math.nan))
    return check_groups([equal, outside], vocab_size=64, max_length=128)


DATA: list[Wording] = [
    ("rows that are no chats", rows('{"messages": "x"}'),
     "source 'ROOT/chats.jsonl': 1 of 1 rows hold no conversation (1 turn; row 1: column 'messages' holds a str, not a list of turns); at most 5% may, and not all: name another column, clean the file, or raise max_misfit_share"),
    ("rows of other columns", rows('{"text": "x"}'),
     "source 'ROOT/chats.jsonl': 1 of 1 rows hold no conversation (1 column; row 1: no chat in its columns text; one is under messages, conversations, or prompt and completion); at most 5% may, and not all: name another column, clean the file, or raise max_misfit_share"),
    ("line that is not JSON", rows("no row"),
     "ROOT/chats.jsonl, line 1: not JSON: Expecting value at column 1; repair the file"),
    ("no file", source("ROOT/none.jsonl"),
     "source 'ROOT/none.jsonl': no such file as 'ROOT/none.jsonl'; check the path and the working directory"),
    ("file of another kind", source("ROOT"),
     "source 'ROOT': 'ROOT' is a directory; name its files, as in ROOT/*.jsonl"),
    ("package that is not installed", source("package://not_installed_here/a.jsonl"),
     "source 'package://not_installed_here/a.jsonl': package 'not_installed_here' is not installed; pip install --no-deps not-installed-here"),
    ("prompts that are too long", pool(prompts__max_prompt_tokens=32),
     "prompt 2f74f2c1e383af62 ('What is aspirin number 0?'): 40 tokens, over prompts.max_prompt_tokens=32; raise that, or set prompts.too_long=drop"),
    ("all held out", pool(prompts__held_out=24),
     "prompts.held_out=24 leaves none of 24 prompts; lower it or add sources"),
    ("more a round than there are", pool(prompts__per_round=21),
     "prompts.per_round=21 is more than the 20 training prompts; lower it or add sources"),
    ("more rounds than prompts", pool(run__rounds=3, prompts__reuse=False),
     "3 rounds x prompts.per_round=8 = 24 prompts, but there are 20 to train on; set run.rounds to 2 or fewer, add sources, or set prompts.reuse=true"),
    ("pairs that cannot be learnt from", broken_pairs,
     "equal answers 0=1: p1:4>4; token id outside the vocabulary of 64: p1:4>70; missing or non-finite reward: p1:4>70. Nothing was trained; drop or mend them, or look at the round's pairs.parquet"),
    ("unknown benchmark", lambda root: find_task("medqua"),
     "task 'medqua': no such benchmark; did you mean 'medqa'? Name one of medqa, medmcqa, pubmedqa, mmlu_medical, medxpertqa, mmlu_pro_health, bioasq_yesno, bioasq_factoid, bioasq_list, kqa"),
]  # fmt: skip

# -- store and resume --------------------------------------------------------------------------------------


def opened(root: Path, resume: bool = True, **changes: Any) -> RunDirectory:
    return RunDirectory.open(parse_config(tiny_run(root, **changes)), resume=resume)


def again(resume: bool, **changes: Any) -> Provoke:
    """A run that is there is opened once more."""

    def reopen(root: Path) -> object:
        with opened(root):
            pass
        return opened(root, resume, **changes)

    return reopen


def twice(root: Path) -> object:
    with opened(root):
        return opened(root)


def phase(change: Callable[[RoundRecord], object], *inputs: str) -> Provoke:
    """A finished round's prompts are read back after a change."""

    def read(root: Path) -> object:
        with opened(root) as store:
            change(finish_round(store, 0))
            return store.round(0).phase("prompts", list, *inputs, kind=Prompt)

    return read


def pruned(root: Path) -> object:
    with opened(root) as store:
        record = finish_round(store, 0)
        record.prune("checkpoint")
        return record.phase_directory("checkpoint", lambda folder: {})


def other_rows(root: Path) -> object:
    Ledger(root / "work", ["one"]).close()
    return Ledger(root / "work", ["another"])


STORE: list[Wording] = [
    ("run is there", again(resume=False),
     "ROOT/runs/tiny: holds a run already; go on with it by --resume, or choose another run.name"),
    ("another config", again(resume=True, objective__beta=0.2),
     "ROOT/runs/tiny: was started with another config (objective.beta: 0.1 -> 0.2); undo the change or choose another run.name"),
    ("another process", twice,
     "ROOT/runs/tiny/.lock: another process is writing this run; wait for it or stop it"),
    ("file was changed", phase(lambda record: record.artifact("prompts").write_bytes(b"")),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: not what was written (DIGEST, found DIGEST); delete ROOT/runs/tiny/rounds/000 to compute it again"),
    ("file is gone", phase(lambda record: record.artifact("prompts").unlink()),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: missing, prompts.json is there; delete ROOT/runs/tiny/rounds/000 to compute it again"),
    ("other inputs", phase(lambda record: None, "another"),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: made from other inputs (DIGEST, now DIGEST); delete ROOT/runs/tiny/rounds/000 to compute it again"),
    ("pruned", pruned,
     "ROOT/runs/tiny/rounds/000/checkpoint: missing, was pruned (run.keep_checkpoints); delete ROOT/runs/tiny/rounds/000 to compute it again"),
    ("ledger of other inputs", other_rows,
     "ROOT/work: holds results of other inputs (DIGEST, now DIGEST); delete the folder to begin anew"),
]  # fmt: skip

# -- commands ----------------------------------------------------------------------------------------------


def command(*arguments: str, files: Mapping[str, str] = MappingProxyType({})) -> Provoke:
    """What is printed by a command that fails, with these files there."""

    def call(root: Path) -> object:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text.replace("ROOT", str(root)))
        found = CliRunner().invoke(app, [argument.replace("ROOT", str(root)) for argument in arguments])
        assert found.exit_code in (1, 2), found.output
        return found.output

    return call


KNOWN = "HuggingFaceTB/SmolLM2-135M-Instruct"
RUN = yaml.safe_dump(tiny_run(Path("ROOT"), policy__path=KNOWN, reward__path=KNOWN))
DATA_STAGE = {"type": "data", "input": ["in.jsonl"], "step": {"type": "rules"}}
RECIPE = yaml.safe_dump(
    {"type": "recipe", "run": {"name": "f", "directory": "ROOT"}, "stages": {"judged": DATA_STAGE}}
)

COMMANDS: list[Wording] = [
    ("no config", command("run", "none.yaml"),
     "none.yaml: no such file; see configs/ for complete examples"),
    ("two manners", command("run", "none.yaml", "--quiet", "--json"),
     "--quiet and --json: choose one; --json says nothing for people on stdout either"),
    ("a run that is there", command("run", "ROOT/run.yaml", "--dry-run", files={"run.yaml": RUN, "runs/tiny/config.yaml": RUN}),
     "ROOT/runs/tiny: holds a run already; go on with it by --resume, or choose another run.name"),
    ("no run", command("status", "ROOT"),
     "ROOT: holds no run; give a folder such as runs/NAME, or start the run first"),
    ("one run", command("compare", "ROOT"),
     "ROOT: 1 run, but a comparison needs 2 or more; name another beside it"),
    ("unknown shape", command("evaluate", "--model", "a/b", "--tasks", "medqa", "--offline", "--device", "cpu"),
     "command line: policies.b='a/b': its shape is unknown without downloading it; set policy.architecture (head_dim, hidden_size, intermediate_size, num_attention_heads, num_hidden_layers, num_key_value_heads, tie_word_embeddings, vocab_size) from its config.json"),
    ("a config and options", command("evaluate", "exam.yaml", "--tasks", "medqa"),
     "--model, --tasks, --protocol, --source, --offline and --limit stand for a CONFIG; give one of both"),
    ("unknown stage", command("data", "judge", "ROOT/recipe.yaml", files={"recipe.yaml": RECIPE}),
     "ROOT/recipe.yaml: stages.judge: no data stage of this recipe (judged); name one, or all"),
    ("a folder that is not there", command("submit", "ROOT/run.yaml", "--address", "http://h:8265", "--working-dir", "ROOT/none", files={"run.yaml": RUN}),
     "--working-dir ROOT/none: no such folder; name one that exists"),
]  # fmt: skip

# -- workers and faults ------------------------------------------------------------------------------------


def gathered(fate: str = "", refused: int = 0, **faults: Any) -> Provoke:
    """A round whose scorers meet this fate and whose engines refuse so many prompts."""
    return lambda root: Round(
        root,
        {"cluster__faults": faults},
        fate=lambda role, rank, turn: fate if role == "reward" else "",
        refuse=lambda key: "too long" if key in {f"p{n}" for n in range(refused)} else "",
    ).run()


@contextmanager
def one_rank() -> Iterator[Any]:
    """An engine of a single rank, without a model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = Engine.__new__(Engine)
        engine.spec = EngineSpec("cpu", "float32", 0, False, 0.0, 1.0, gradient_checkpointing=False)
        engine.skipped_steps, engine.device = engine.spec.max_skipped_steps, torch.device("cpu")
        yield engine
    finally:
        dist.destroy_process_group()


def endless_loss(root: Path) -> object:
    with one_rank() as engine:
        return engine.step(iter([torch.tensor(math.nan)]), 1, 1e-6, ["p1:0>1", "p2:0>3"])


def endless_gradient(root: Path) -> object:
    with one_rank() as engine:
        return engine._discard_gradients(["p1:0>1", "p2:0>3"])


def other_ranks(root: Path) -> object:
    (root / "ranks.json").write_text('{"ranks": 2}')
    with one_rank() as engine:
        return engine.load_state(str(root))


def no_key(root: Path) -> object:
    request = ChatRequest("a", ({"role": "user", "content": "say a"},))
    with fake_api(lambda body: Said({"error": {"message": "no key"}}, 401)) as (url, _):
        return list(ApiGenerator(Endpoint(base_url=url, model="m", retries=0), root).replies([request]))


WORKERS: list[Wording] = [
    ("no scorers left", gathered("dies", restarts=0),
     "reward: 2 of 2 workers are lost after 0 restarts (cluster.faults.restarts=0); the last: Killed: by its fate; mend the cause and go on with --resume"),
    ("set aside", gathered(refused=3, set_aside_share=0.2),
     "round 0: 3 prompts set aside, more than cluster.faults.set_aside_share=0.2 allows (2); the last: too long; mend the cause and go on with --resume"),
    ("loss", endless_loss,
     "loss is not finite; the batch holds p1:0>1, p2:0>3; look at them, or lower training.learning_rate"),
    ("gradient", endless_gradient,
     "gradient is not finite in 1 steps, training.max_skipped_steps=0; the batch holds p1:0>1, p2:0>3; look at them, or lower training.learning_rate"),
    ("ranks", other_ranks,
     "optimizer state in ROOT is of 2 ranks, this run has 1; use the same cluster.policy.ranks or training.optimizer_state=reset"),
    ("an API that wants a key", no_key,
     "endpoint http://HOST/v1: status 401 (no key); set api_key_env to the variable that holds its key"),
]  # fmt: skip

# -- all of them -------------------------------------------------------------------------------------------

TABLES = {"config": CONFIGS, "data": DATA, "store": STORE, "command": COMMANDS, "worker": WORKERS}


@pytest.mark.parametrize(
    ("provoke", "sentence"),
    [
        pytest.param(*rest, id=f"{table}-{name}")
        for table, wordings in TABLES.items()
        for name, *rest in wordings
    ],
)
def test_it_is_said_like_this_in_one_line_with_value_rule_and_fix(
    tmp_path: Path, provoke: Provoke, sentence: str
) -> None:
    try:
        said = provoke(tmp_path)
    except (ValueError, RuntimeError) as error:
        said = error
    told = str(said).removesuffix("\n").replace(str(tmp_path), "ROOT")
    told = re.sub(r"127\.0\.0\.1:\d+", "HOST", told)
    assert re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", told) == sentence
    assert "\n" not in sentence
    assert re.search(r"[='\d/]|--[a-z]|\b[a-z_]+\.[a-z_]+\b", sentence), "no value, key or name"
    assert re.search(r"; [a-z]|\?|\b(should|must|missing|allowed|choose)\b", sentence), "nothing to do"
