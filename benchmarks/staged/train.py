"""Stage 3 of a round of scripts: TRL's DPOTrainer on the pairs; the policy is saved for the next round's stage 1."""

from __future__ import annotations

from typing import Any

from stage import Stage, read_jsonl, trl_settings


def main() -> None:
    stage = Stage()
    job = stage.job
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """Its step untouched; the pairs are token ids already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    stage.end("import")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job[name], dtype=getattr(torch, job["precision"]))
        for name in ("policy", "reference")
    )
    settings = DPOConfig(
        **trl_settings(job),
        max_length=None,
        precompute_ref_log_probs=job["precompute"],
        logging_steps=1,
        save_strategy="no",
    )
    trainer = Tokenized(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(read_jsonl(job["pairs"])),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    stage.end("load")
    trainer.train()
    stage.end("work")
    trainer.save_model(job["output"])
    stage.end("save")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    stage.finish(steps=trainer.state.global_step, loss_first=losses[0], loss_last=losses[-1])


if __name__ == "__main__":
    main()
