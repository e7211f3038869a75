"""The stage that makes preference pairs out of a policy's own answers."""

from __future__ import annotations

from pathlib import Path

from ultramed_rl.cluster.inputs import describe_inputs, describe_rendering
from ultramed_rl.config import ContrastsConfig
from ultramed_rl.data.prompts import prepare_pool
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import PreferenceGroup
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.cards import data_card, write_card
from ultramed_rl.tracking import Progress, watched
from ultramed_rl.workers.sampling import SamplingWorkers, sample_contrasts


def make_contrasts(config: ContrastsConfig, *, resume: bool = False) -> Path:
    """Sample, contrast, and write pairs.parquet; returns its path. A finished stage is read back."""
    progress = Progress()
    tokenizer = chat_tokenizer(config.policy)
    check_models(config)

    def describe() -> dict[str, str]:
        return {**describe_inputs(config), "chat as rendered": describe_rendering(tokenizer)}

    with WorkDirectory.open(config, resume, describe) as store, watched(store.path):
        artifacts = ArtifactFolder(store.path)

        def compute() -> list[PreferenceGroup]:
            seed = config.run.seed
            pool = prepare_pool(config.prompts, tokenizer, seed, progress)
            workers = SamplingWorkers(config, tokenizer)
            try:
                workers.start_rollout(config.policy.path, 0)
                return sample_contrasts(config.contrasts, pool.training, workers, tokenizer, seed, progress)
            finally:
                workers.stop()

        pairs = artifacts.phase("pairs", compute, kind=PreferenceGroup)
        path = store.path / "pairs.parquet"
        write_card(store.path, data_card(config, store.path, {"pairs": len(pairs)}))
        progress.say(f"{config.run.name}: {len(pairs)} pairs: {path}")
        return path
