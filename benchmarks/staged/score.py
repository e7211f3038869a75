"""Stage 2 of a round of scripts: a reward model of transformers scores all answers; best and worst become pairs."""

from __future__ import annotations

from typing import Any

from stage import Stage, read_jsonl, write_jsonl


def main() -> None:
    stage = Stage()
    job = stage.job
    import torch
    from transformers import AutoModelForSequenceClassification

    stage.end("import")
    dtype = getattr(torch, job["precision"])
    model = AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=dtype).eval()
    stage.end("load")
    rows = read_jsonl(job["answers"])
    texts = [row["prompt"] + answer["ids"] for row in rows for answer in row["answers"]]
    scores = iter(score(model, texts, job["score_tokens"]))
    pairs = []
    for row in rows:
        for answer in row["answers"]:
            answer["score"] = next(scores)
        pairs += pair_of(row, job["min_margin"])
    write_jsonl(job["pairs"], pairs)
    stage.end("work")
    stage.finish(answers=len(texts), pairs=len(pairs))


def score(model: Any, texts: list[list[int]], budget: int) -> list[float]:
    """One number for each text: padded batches of texts of like length, of at most `budget` tokens."""
    import torch

    found = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    with torch.inference_mode():
        while order:
            width = len(texts[order[0]])
            chosen, order = order[: max(1, budget // width)], order[max(1, budget // width) :]
            ids = torch.full((len(chosen), width), model.config.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(chosen):
                ids[place, : len(texts[i])] = torch.tensor(texts[i])
                mask[place, : len(texts[i])] = 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
            for i, value in zip(chosen, logits, strict=True):
                found[i] = value
    return found


def pair_of(row: dict[str, Any], min_margin: float) -> list[dict[str, Any]]:
    """The best answer with text and the worst of another text, if there is a gap between them."""
    spoken = [answer for answer in row["answers"] if answer["text"].strip()]
    if not spoken:
        return []
    best = max(spoken, key=lambda answer: answer["score"])
    others = [a for a in row["answers"] if a["text"].strip() != best["text"].strip()]
    worst = min(others, key=lambda answer: answer["score"], default=best)
    if best["score"] - worst["score"] <= 0 or best["score"] - worst["score"] < min_margin:
        return []
    return [{"prompt_ids": row["prompt"], "chosen_ids": best["ids"], "rejected_ids": worst["ids"]}]


if __name__ == "__main__":
    main()
