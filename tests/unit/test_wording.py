"""What users read most, word for word and once: all other tests hold to keys, values, ids and numbers.

A message is provoked as a user would provoke it, and stands here as it is printed, with ROOT for the test's folder, HOST for
a server's address and DIGEST for twelve digits of one. Each is one line with a value, the rule that it breaks, and what to do.
"""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests import staged
from tests.fake_api import Said, answer_all, fake_api
from tests.rounds import finish_round
from tests.tiny import make_model, make_questions, make_tokenizer, tiny_config, tiny_run
from tests.unit.rewards import test_http as servers
from tests.unit.tracking import test_stall as stall
from tests.unit.tracking import test_status as status
from tests.unit.tracking import test_tracking as tracking
from ultramed_rl.actors.deepspeed_setup import EngineSpec
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.tasks import Sums
from ultramed_rl.cli import app
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import load_any, parse_config
from ultramed_rl.config.cluster import Faults, TrainerGroup
from ultramed_rl.config.models import Endpoint, LoRA, Model
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.choices import Options, settle_keys
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.prompts import check_rounds, load_prompts, split_pool
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.http.generator import ApiGenerator
from ultramed_rl.learning.checks import check_groups
from ultramed_rl.models.checks import check_policy_model, check_reward_model
from ultramed_rl.models.load import load_policy
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.online.stream import Acceptance
from ultramed_rl.records import ChatRequest, Completion, PreferenceGroup, Prompt
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import Outcome, Pool, PoolRules
from ultramed_rl.store import RoundRecord, RunDirectory
from ultramed_rl.store.remote import RemoteCopy
from ultramed_rl.store.remote_folder import WRITER, Lease, RemoteFolder
from ultramed_rl.tracking.verdict import give_verdict

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
     "my.yaml: run.sed: unknown key; did you mean 'seed'? (allowed: name, directory, scratch, publish_every_s, seed, rounds, overlap, keep_checkpoints, keep, keep_by, stop)"),
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
     "my.yaml: objective.type='dop': must be one of dpo, robust_dpo, r_dpo, dpop, ipo, hinge, apo_zero, apo_down, sppo_hard, sppo, nca_pair, nca, infonca, simpo, orpo, raft, kto, kto_pair, mixture; did you mean 'dpop'?"),
    ("secret in an address", config(run__directory="s3://key:hunter2@bucket/runs"),
     "my.yaml: run.directory: its address holds a password, which config.yaml would keep; leave it out and let the environment have it: token_env and api_key_env name a variable, object stores read their own (AWS_SECRET_ACCESS_KEY)"),
    ("kind missing", config(objective={"beta": 0.1}),
     "my.yaml: objective.type: required, but missing"),
    ("key missing", config(prompts__sources=[{"type": "question"}]),
     "my.yaml: prompts.sources.0.uri: required, but missing"),
    ("lengths that exceed the context", config(policy__max_length=100),
     "my.yaml: prompts.max_prompt_tokens=96: with sampling.max_new_tokens=16 it exceeds policy.max_length=100; at most 84 fit: shorten one or raise policy.max_length"),
    ("no reward", config(reward__path=None),
     "my.yaml: reward: exactly one of reward.path (a trained reward model), reward.ensemble (several) and reward.train (train one in this run) must be set, or none of them beside reward.terms"),
    ("engines on CPU", config(cluster__rollout__kv_cache_gib=None),
     "my.yaml: cluster.rollout.kv_cache_gib=null: must be set on cluster.device=cpu, say 1.0"),
    ("8 bits on CPU", config(cluster__rollout__quantization="fp8"),
     "my.yaml: cluster.rollout.quantization=fp8: needs cluster.device=cuda; set it to null"),
    ("8 bits of float32", config(cluster__device="cuda", cluster__rollout__quantization="fp8"),
     "my.yaml: cluster.rollout.quantization=fp8: engines compute in float32, from which vLLM rounds none; set cluster.rollout.precision=bfloat16"),
    ("adapters of 4-bit weights", config(policy__lora={"sync": "adapter", "quantize": "nf4"}),
     "my.yaml: policy.lora.sync=adapter: engines hold the base model whole, the policy in 4 bits (quantize=nf4); use sync=merged"),
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
    ("early without devices", config(training__overlap_training=True, cluster__layout="colocated"),
     "my.yaml: training.overlap_training=true: cluster.layout=colocated gives the policy no devices of its own; use disaggregated, or training.overlap_training=false"),
    ("type of no run", file("type: sfft\n"),
     "ROOT/my.yaml: type='sfft': must be one of online, sft, reward, preference, contrasts, evaluate, reward_bench, data; did you mean 'sft'? (line 1)"),
    ("no mapping", file("- a\n"),
     "ROOT/my.yaml: must be a mapping of sections, not list; see configs/ for complete examples"),
    ("key twice", file("run: {name: a}\nrun: {name: b}\n"),
     "ROOT/my.yaml: run: key 'run' stands twice; remove one (line 2)"),
    ("override that is none", file("run: {name: a}\n", "epochs"),
     "override 'epochs': must read section.key=value, as in training.epochs=2"),
    ("override below a value", file("run: {name: a}\n", "run.name.deeper=1"),
     "override 'run.name.deeper=1': 'name' is a value, not a section; set the value itself"),
    ("too few devices", plan(**LLAMA_8B, cluster={**ONE_GPU, "layout": "disaggregated"}),
     "cluster.policy: 1 processes x 1 devices = 1, but 0 of 1 x 1 = 1 devices are free (roles before it took the rest); lower its number, raise cluster.nodes, or use cluster.layout=colocated"),
    ("no room for a sequence", plan(**LLAMA_8B, policy__precision="bfloat16", cluster={**ONE_GPU, "rollout": {"kv_cache_gib": 0.01}}),
     "cluster.rollout: an engine's cache has 0.01 GiB beside weights of 15.0 GiB a GPU, and its longest sequence takes 0.02 GiB; raise cluster.rollout.tensor_parallel or memory_fraction, or lower the model's max_length"),
    ("too little memory", plan(**LLAMA_8B, cluster=ONE_GPU),
     "cluster.device_memory_gib=24 per GPU: too little for a GPU's processes and their CUDA contexts, 158.9 GiB; the largest is policy: weights 29.9 + gradients 59.8 + optimizer 59.8 + activations 3.5 + buffers 1.9 = 154.9 GiB; raise zero_stage, ranks or sequence_parallel of cluster.policy, set cluster.policy.offload_optimizer, or lower training.micro_batch_tokens, prompts.max_prompt_tokens or sampling.max_new_tokens"),
]  # fmt: skip

# -- data and models ---------------------------------------------------------------------------------------


def rows(*lines: str) -> Provoke:
    """A source of chats with these lines."""

    def read(root: Path) -> object:
        path = root / "chats.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        return list(read_conversations(ConversationSource(uri=str(path)), Counter()))

    return read


def keys(*values: object) -> Provoke:
    """Questions with these keys among four blood groups."""

    def read(root: Path) -> object:
        path = root / "keys.jsonl"
        path.write_text("".join(json.dumps({"key": value}) + "\n" for value in values))
        groups = Options(("O", "B", "A", "AB"))
        return settle_keys(
            lambda row, keys: keys.place(row["key"], groups), [str(path)], "auto", "step.first_place"
        )

    return read


def table(text: str) -> Provoke:
    def read(root: Path) -> object:
        (root / "table.csv").write_text(text)
        return list(read_rows(str(root / "table.csv")))

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


def templated(template: str) -> Provoke:
    """A model is loaded with a chat template of one's own."""

    def load(root: Path) -> object:
        make_tokenizer().save_pretrained(root)
        tiny_config().save_pretrained(root)
        (root / "mine.jinja").write_text(template)
        return ChatTokenizer(str(root), chat_template=str(root / "mine.jinja"))

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
     "source 'ROOT/chats.jsonl': 1 of 1 rows hold no conversation (1 turn; row 1: column 'messages' holds a str, not a list of turns); at most 5% may, and not all: clean the file, or raise max_misfit_share"),
    ("rows of other columns", rows('{"text": "x"}'),
     "source 'ROOT/chats.jsonl': 1 of 1 rows hold no conversation (1 column; row 1: no chat in its columns text; one is under messages, conversations, or prompt and completion); at most 5% may, and not all: clean the file, or raise max_misfit_share"),
    ("keys that count from nobody knows where", keys(1, 2, 3),
     "source 'ROOT/keys.jsonl': its keys may be places from 0 or places from 1: either reads 3 of 3, and not in the same sense; set step.first_place to 0 or 1"),
    ("keys that are letters or blood groups", keys("A"),
     "source 'ROOT/keys.jsonl': its keys may be labels of options or texts of options: either reads 1 of 1, and not in the same sense; write the options' letters as keys"),
    ("a table with a cell too many", table("a,b\n1,2,3\n"),
     "ROOT/table.csv, line 2: 3 cells under 2 columns; quote texts that hold quotes, ends of lines or what stands between cells"),
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
    ("template that fails", templated("{{ messages + 1 }}"),
     "model 'ROOT', chat_template='ROOT/mine.jinja': its chat template cannot render a chat of user, assistant (TypeError: can only concatenate list (not \"int\") to list); mend it, use another, or leave out what it refuses"),
    ("unknown benchmark", lambda root: find_task("medqua"),
     "task 'medqua': no such benchmark; did you mean 'medqa'? Name one of medqa, medmcqa, pubmedqa, mmlu_medical, medxpertqa, mmlu_pro_health, bioasq_yesno, bioasq_factoid, bioasq_list, kqa, healthbench, healthbench_hard, healthbench_consensus, alpaca_eval, mt_bench"),
]  # fmt: skip

# -- models ------------------------------------------------------------------------------------------------


def policy(change: Callable[[dict[str, torch.Tensor]], object] | None = None, **settings: Any) -> Provoke:
    """A tiny Llama is looked at before anything starts, with other weights or settings."""

    def look(root: Path) -> object:
        folder = make_model(root / "policy", "llama", tie_word_embeddings="lora" in settings)
        if change is not None:
            weights = load_file(folder / "model.safetensors")
            change(weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        check_policy_model(Model(path=str(folder), **{"max_length": 64, **settings}), "policy")
        return load_policy(str(folder), "float32")

    return look


def pointer(root: Path) -> object:
    folder = make_model(root / "policy", "llama")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    return make_plan(parse_config(tiny_run(root)))


MODELS: list[Wording] = [
    ("a weight is missing", policy(lambda weights: weights.pop("model.layers.1.self_attn.q_proj.weight")),
     "model 'ROOT/policy': weights are 1 missing (model.layers.1.self_attn.q_proj.weight); copy the checkpoint again, whole and with its own config.json"),
    ("a weight of another size", policy(lambda weights: weights.update({"model.norm.weight": torch.ones(31)})),
     "model 'ROOT/policy': weights are 1 of another size (model.norm.weight 31 for 32); copy the checkpoint again, whole and with its own config.json"),
    ("a weight that is not finite", policy(lambda weights: weights["model.norm.weight"].fill_(math.nan)),
     "model 'ROOT/policy': 1 weights are not finite (model.norm.weight); the training that made it diverged, or the file is damaged: use another checkpoint"),
    ("a pointer of git-lfs", pointer,
     "policy.path='ROOT/policy': ROOT/policy/model.safetensors: not a safetensors file, but a pointer of git-lfs to one (git lfs pull); copy or download it again"),
    ("longer than positions reach", policy(max_length=4096),
     "policy.max_length=4096: the positions of 'ROOT/policy' reach 64 tokens; set it to 64 or less, or name a model with a longer context"),
    ("an adapter that would be lost", policy(lora=LoRA(target_modules=["lm_head"])),
     "policy.lora.target_modules=['lm_head']: lm_head shares its weight with another layer (tie_word_embeddings), which the merged one would change too; leave it out, or untie them in the checkpoint"),
    ("an adapter without a layer", policy(lora=LoRA(target_modules=["q_proj", "query"])),
     "policy.lora.target_modules=['q_proj', 'query']: no layer of the model is called query; leave it out"),
    ("a reward model over an encoder",
     lambda root: check_reward_model(str(make_model(root / "bert", "bert", classifier=True)), trained=True),
     "reward model 'ROOT/bert': a BertForSequenceClassification has no linear layer `score` over a decoder's hidden states; name a classifier made from a causal language model"),
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


STORE: list[Wording] = [
    ("run is there", again(resume=False),
     "ROOT/runs/tiny: holds a run already; go on with it by --resume, or choose another run.name"),
    ("another config", again(resume=True, objective__beta=0.2),
     "ROOT/runs/tiny: was started with another config (objective.beta: 0.1 -> 0.2); undo the change or choose another run.name"),
    ("another process", twice,
     "ROOT/runs/tiny/.lock: another process is writing this run; wait for it or stop it"),
    ("file was changed", phase(lambda record: record.artifact("prompts").write_bytes(b"")),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: not what was written (DIGEST, found DIGEST); put it back, or delete it and prompts.json beside it to compute it again"),
    ("file is gone", phase(lambda record: record.artifact("prompts").unlink()),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: missing, prompts.json is there; put it back, or delete it and prompts.json beside it to compute it again"),
    ("other inputs", phase(lambda record: None, "another"),
     "ROOT/runs/tiny/rounds/000/prompts.parquet: made from other inputs (DIGEST, now DIGEST); put it back, or delete it and prompts.json beside it to compute it again"),
    ("pruned", pruned,
     "ROOT/runs/tiny/rounds/000/checkpoint: missing, was pruned (run.keep_checkpoints); put it back, or delete it and checkpoint.json beside it to compute it again"),
]  # fmt: skip

# -- the copy of a run at a URL ----------------------------------------------------------------------------


def at_url(provoke: Provoke) -> Provoke:
    """With an empty store behind staged://, whose failures end with it."""

    def call(root: Path) -> object:
        staged.empty_store()
        try:
            with patch("ultramed_rl.store.remote_folder.LONGEST_WAIT_S", 0.0):
                return provoke(root)
        finally:
            staged.empty_store()

    return call


def fail(error: Exception) -> None:
    """From now on nothing reaches the store."""

    def refuse(step: str, path: str) -> None:
        raise error

    staged.Staged.before = staticmethod(refuse)


def opened_there(root: Path, resume: bool = True) -> RunDirectory:
    return RunDirectory.open(staged.config(root), resume=resume)


def again_there(root: Path) -> object:
    with opened_there(root):
        pass
    return opened_there(root, resume=False)


def out_of_reach(root: Path) -> object:
    fail(PermissionError("403 Forbidden"))
    return opened_there(root)


def second_writer(root: Path) -> object:
    place = RemoteFolder(staged.URL)
    place.write_json(WRITER, asdict(staged.owner(began=0.0)))
    return Lease(place, "ours", 10.0)


def waited_for(root: Path) -> object:
    place = RemoteFolder(staged.URL)
    place.write_json(WRITER, asdict(staged.owner(every_s=0.01)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Lease(place, "ours", 10.0, waits=True).release()
    return told[0].message


def overtaken(root: Path) -> object:
    place = RemoteFolder(staged.URL)
    lease = Lease(place, "ours", 10.0)
    place.write_json(WRITER, asdict(staged.owner()))
    try:
        return lease.check()
    finally:
        lease.release()


def outage(ended: bool) -> Provoke:
    """The warning while a run goes on, or the error at its end."""

    def publish(root: Path) -> object:
        copying = RemoteCopy(staged.URL, root, 0.02)
        copying.take_up()
        fail(ConnectionError("the network is down"))
        (root / "a.txt").write_text("a")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            copying.start()
            deadline = time.monotonic() + 20
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(RuntimeError) as error:
                copying.close()
        return error.value if ended else told[0].message

    return publish


REMOTE: list[Wording] = [
    ("a URL with one slash", config(run__directory="s3:/bucket/runs"),
     "my.yaml: run.directory='s3:/bucket/runs': neither a folder nor a URL; a URL has two slashes, as in s3://bucket/runs"),
    ("run is there", at_url(again_there),
     "staged://bucket/runs/tiny: holds a run already; go on with it by --resume, or choose another run.name"),
    ("out of reach", at_url(out_of_reach),
     "staged://bucket/runs/tiny: cannot be read or written (PermissionError: 403 Forbidden); look at the address, the credentials and the network"),
    ("another process", at_url(second_writer),
     "staged://bucket/runs/tiny: another process is publishing this run (process 17 on other, since 1970-01-01 00:00 UTC); stop it, or wait 30 s if it is dead"),
    ("a lease that was not given back", at_url(waited_for),
     "staged://bucket/runs/tiny: process 17 on other published this run and has not given it back; waiting 0 s for a sign of life before this one takes over"),
    ("taken over", at_url(overtaken),
     "staged://bucket/runs/tiny: taken over by process 17 on other; what this process makes is no longer published: stop one of the two"),
    ("outage", at_url(outage(ended=False)),
     "staged://bucket/runs/tiny: not published (the network is down); tried again every 0.02 s, and the run goes on"),
    ("outage at the end", at_url(outage(ended=True)),
     "staged://bucket/runs/tiny: the copy isn't whole (the network is down); ROOT has everything: rerun with --resume on this machine to publish the rest"),
]  # fmt: skip

# -- reward servers and judges -----------------------------------------------------------------------------


def answered(scorer: Callable[[str], Any], code: int, reply: object) -> Provoke:
    """Two answers are to be scored, and this is what the server says."""

    def score(root: Path) -> object:
        with servers.serving(lambda request: (code, reply)) as url:
            answers = [servers.completion("yes"), servers.completion("no")]
            return scorer(url).score([servers.prompt()], answers)

    return score


SERVERS: list[Wording] = [
    ("a server that wants a token", answered(servers.client, 401, {"detail": "no"}),
     "reward server http://HOST/get_reward: status 401 (no); set token_env to the variable that holds the server's token"),
    ("too few rewards", answered(servers.client, 200, {"rewards": [1.0]}),
     """reward server http://HOST/get_reward: its reply ({"rewards": [1.0]}): 1 `rewards` for 2 texts; it must answer {"rewards": [one number per query]} as OpenRLHF's serve_rm does"""),
    ("a judge that is not there", answered(servers.judge, 404, {"error": {"message": "no such model"}}),
     "judge http://HOST/v1: status 404 (no such model); check base_url and model='j'"),
    ("grades that cannot be read", answered(servers.judge, 200, servers.chat("I cannot grade that.")),
     "judge 'j': 2 of 2 answers have no readable grade, as in 'I cannot grade that.'; raise judge.max_tokens, or ask in the template for a last line 'Grade: <number>'"),
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
     "command line: policies.b='a/b': its shape is unknown without downloading it; name its folder once it is downloaded, or set policy.architecture (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size, head_dim, tie_word_embeddings, max_position_embeddings, parameters) from its config.json"),
    ("a config and options", command("evaluate", "exam.yaml", "--tasks", "medqa"),
     "--model, --tasks, --protocol, --source, --offline and --limit stand for a CONFIG; give one of both"),
    ("unknown stage", command("data", "judge", "ROOT/recipe.yaml", files={"recipe.yaml": RECIPE}),
     "ROOT/recipe.yaml: stages.judge: no data stage of this recipe (judged); name one, or all (line 4)"),
    ("a folder that is not there", command("submit", "ROOT/run.yaml", "--address", "http://h:8265", "--working-dir", "ROOT/none", files={"run.yaml": RUN}),
     "--working-dir ROOT/none: no such folder; name one that exists"),
]  # fmt: skip

# -- jobs on a cluster -------------------------------------------------------------------------------------


def submit(*arguments: str, address: str = "http://h:8265") -> Provoke:
    return command("submit", "ROOT/run.yaml", *arguments, "--address", address, files={"run.yaml": RUN})


JOBS: list[Wording] = [
    ("relative directory", submit("run.directory=runs"),
     "ROOT/run.yaml: run.directory='runs': a relative path, which lies in the job's temporary folder and goes with it; give an absolute path on a file system that all nodes see, as in run.directory=/shared/runs"),
    ("relative path", submit("policy.path=./policy"),
     "ROOT/run.yaml: policy.path='./policy': a relative path, which does not exist on the cluster; give an absolute path on a file system that all nodes see, or send the folder along with --working-dir DIR"),
    ("variable that is not set", submit("--env", "NOT_SET_ANYWHERE"),
     "--env NOT_SET_ANYWHERE: this environment variable isn't set; export it, or write --env NOT_SET_ANYWHERE=VALUE"),
    ("another port", submit(address="head:6379"),
     "--address head:6379: must be the dashboard's, which takes jobs, as in http://HEAD:8265"),
]  # fmt: skip

# -- workers and faults ------------------------------------------------------------------------------------


def hung(restarts: int) -> Provoke:
    """A scorer that never answers, nor does what replaces it."""

    def pump(root: Path) -> None:
        pool = Pool(
            "reward", [0], PoolRules(Faults(restarts=restarts, hang_s=30.0, start_s=60.0), room=4), Mock()
        )
        pool.offer(WorkItem("p1", 1, 1.0), "answer")
        for seconds in (0.0, 31.0, 92.0):
            pool.pump(seconds)

    return pump


def set_aside(root: Path) -> None:
    """Three of twelve prompts that no engine takes."""
    intake = Acceptance(Mock(), index=0, prompts=12, share=0.2, say=Mock())
    for number in range(3):
        intake.accept(Outcome("rollout", f"p{number}", error="130 tokens, over 128"))


@contextmanager
def one_rank() -> Iterator[Any]:
    """An engine of a single rank, without a model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = Engine.__new__(Engine)
        engine.spec = EngineSpec(
            "cpu",
            "float32",
            TrainerGroup(zero_stage=0),
            Optimization(gradient_checkpointing=False, max_skipped_steps=0),
        )
        engine.skipped_steps, engine.device = engine.spec.training.max_skipped_steps, torch.device("cpu")
        yield engine
    finally:
        dist.destroy_process_group()


def endless_loss(root: Path) -> object:
    with one_rank() as engine:
        engine.backend, engine.module = Mock(optimizer=None), torch.nn.Identity()
        return engine.step(iter([torch.tensor(math.nan)]), 1, 1e-6, ["p1:0>1", "p2:0>3"], Sums(()))


def endless_gradient(root: Path) -> object:
    with one_rank() as engine:
        return engine._discard_gradients(["p1:0>1", "p2:0>3"])


def other_ranks(root: Path) -> object:
    (root / "ranks.json").write_text('{"ranks": 2}')
    with one_rank() as engine:
        return engine.load_state(str(root))


def no_state(root: Path) -> object:
    with one_rank() as engine:
        return engine.load_state(str(root / "checkpoint" / "optimizer"))


def no_key(root: Path) -> object:
    request = ChatRequest("a", ({"role": "user", "content": "say a"},))
    with fake_api(lambda body: Said({"error": {"message": "no key"}}, 401)) as (url, _):
        return answer_all(ApiGenerator(Endpoint(base_url=url, model="m", retries=0), root), [request])


WORKERS: list[Wording] = [
    ("no scorer left", hung(restarts=0),
     "reward: 1 of 1 workers are lost after 0 restarts (cluster.faults.restarts=0); the last: no sign of life for 31 s; mend the cause and go on with --resume"),
    ("no replacement", hung(restarts=1),
     "reward: 1 of 1 workers are lost after 1 restarts (cluster.faults.restarts=1); the last: its replacement was not there after 61 s; mend the cause and go on with --resume"),
    ("prompts set aside", set_aside,
     "round 0: 3 prompts set aside, more than cluster.faults.max_failed_prompt_share=0.2 allows (2); the last: 130 tokens, over 128; mend the cause and go on with --resume"),
    ("loss", endless_loss,
     "loss is not finite; the batch holds p1:0>1, p2:0>3; look at them, or lower training.learning_rate"),
    ("gradient", endless_gradient,
     "gradient is not finite in 1 steps, training.max_skipped_steps=0; the batch holds p1:0>1, p2:0>3; look at them, or lower training.learning_rate"),
    ("ranks", other_ranks,
     "optimizer state in ROOT is of 2 ranks, this run has 1; use the same cluster.policy.ranks"),
    ("no state", no_state,
     "ROOT/checkpoint/optimizer/ranks.json: not there, and with it what training goes on from besides the weights; put it back, or begin a new run with policy.path=ROOT/checkpoint"),
    ("an API that wants a key", no_key,
     "endpoint http://HOST/v1: status 401 (no key); set api_key_env to the variable that holds its key"),
]  # fmt: skip

# -- all of them -------------------------------------------------------------------------------------------

TABLES = {
    "config": CONFIGS,
    "data": DATA,
    "models": MODELS,
    "store": STORE,
    "remote": REMOTE,
    "server": SERVERS,
    "command": COMMANDS,
    "job": JOBS,
    "worker": WORKERS,
}


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
    assert re.search(r"; [a-z]|\?|\b(should|must|missing|allowed|choose|rerun)\b", sentence), "nothing to do"


# -- what a run says of itself -----------------------------------------------------------------------------


def under_way(root: Path) -> object:
    store = status.open_run(root)
    finish_round(store, 0, status.ROUND)
    finish_round(store, 1)
    status.beat(store.path)
    return status.render_status(status.read_status(store.path)).splitlines()[0]


def verdict(change: float, low: float, high: float, **judges: float) -> Provoke:
    figures = {"eval_change": change, "eval_change_low": low, "eval_change_high": high}
    for name, middle in judges.items():
        shifts = (
            ("mean", 0.0),
            ("change", 0.0),
            ("change_low", -0.01),
            ("change_high", 0.01),
            ("win_rate", 0.4 - middle),
        )
        figures |= {f"judge_{name}_{key}": middle + shift for key, shift in shifts}
    return lambda root: str(give_verdict([{**tracking.ROW, **figures}], dict.fromkeys(judges, "rule")))


def stalled(finished: float | None = None) -> Provoke:
    """Nothing is finished for a minute, or until then."""

    def look(root: Path) -> object:
        run = stall.Run()
        told = [run.look(at) for at in (0, 60)]
        if finished is None:
            return told[-1]
        run.finished_at += finished
        return run.look(finished + 5)

    return look


def held_back(root: Path) -> object:
    scorer = stall.RoleState("reward", 1, 0, 1, 640, 32, 0, ("rollout",), 1.0)
    return "; ".join(stall.explain_wait([stall.ROLLOUT, scorer]))


SAID: list[Wording] = [
    ("status", under_way, "tiny (online): running, round 2 of 3, 4 min 10 s so far, about 3 min 10 s left"),
    ("rose, and nobody judged", verdict(0.2, 0.1, 0.4),
     "The held-out reward rose by itself: +0.200 against the starting policy (95 % interval +0.100 to +0.400, wins 48%). "
     "No judge was asked (evaluation.judges=[])."),
    ("rose", verdict(0.2, 0.1, 0.4, skill=0.3),
     "The held-out reward rose: +0.200 against the starting policy (95 % interval +0.100 to +0.400, wins 48%). "
     "skill rose: +0.300 (95 % interval +0.290 to +0.310, wins 40%)."),
    ("rose, and one judge of two", verdict(0.2, 0.1, 0.4, near=0.0, skill=0.3),
     "The held-out reward rose: +0.200 against the starting policy (95 % interval +0.100 to +0.400, wins 48%). "
     "skill rose: +0.300 (95 % interval +0.290 to +0.310, wins 40%). "
     "near did not move measurably: +0.000 (95 % interval -0.010 to +0.010, wins 40%)."),
    ("over-optimised", verdict(0.2, 0.1, 0.4, near=-0.1),
     "Over-optimised: rose by its own reward, fell by near since round 0. The held-out reward changed by +0.200 against the starting policy "
     "(95 % interval +0.100 to +0.400, wins 48%). near fell: -0.100 (95 % interval -0.110 to -0.090, wins 40%)."),
    ("unclear", verdict(0.2, -0.1, 0.4),
     "The held-out reward did not move measurably: +0.200 against the starting policy (95 % interval -0.100 to +0.400, wins 48%). "
     "No judge was asked (evaluation.judges=[])."),
    ("fell", verdict(-0.2, -0.4, -0.1, near=-0.1),
     "The held-out reward fell and answers fell by near since round 0: -0.200 against the starting policy (95 % interval -0.400 to "
     "-0.100, wins 48%). near fell: -0.100 (95 % interval -0.110 to -0.090, wins 40%)."),
    ("stall", stalled(),
     "nothing has finished for 60 s: rollout 4 of 4 busy, 0 of 100 queued, 48 under way, last one 60 s ago; reward 0 of 2 busy, 0 of 635 queued, 0 under way, last one 65 s ago"),
    ("end of a stall", stalled(finished=90.0), "goes on again after 90 s"),
    ("full queue", held_back,
     "rollout is held back by reward: reward 1 of 1 busy, 640 of 640 queued, 32 under way, last one 1 s ago"),
]  # fmt: skip


@pytest.mark.parametrize(("provoke", "sentence"), [pytest.param(*rest, id=name) for name, *rest in SAID])
def test_a_run_says_of_itself(tmp_path: Path, provoke: Provoke, sentence: str) -> None:
    assert provoke(tmp_path) == sentence
