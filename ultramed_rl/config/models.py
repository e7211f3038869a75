"""The models of a run: which ones, how they are held in memory, and how one behind an API is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ultramed_rl.config.base import Section, key
from ultramed_rl.config.limits import (
    Address,
    Budget,
    Concurrency,
    Few,
    KeyVariable,
    Label,
    Money,
    Parameters,
    PerMinute,
    ReplicaTokens,
    Retries,
    Seconds,
    Share,
    Tokens,
    WebAddress,
    Width,
)


def resolve_precision(precision: str, device: str) -> str:
    """`bfloat16` or `float32`. `auto` is bfloat16 on GPUs and on CPUs that compute it natively. A CPU without AVX512-BF16
    or AMX emulates bfloat16: measured at a third of the fp32 rate."""
    if precision != "auto":
        return precision
    if device == "cuda" or native_bfloat16():
        return "bfloat16"
    return "float32"


def native_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPU lists a bfloat16 instruction set."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


Precision = Annotated[
    Literal["auto", "bfloat16", "float32"],
    Field(description="auto: bfloat16 where the device computes it natively, float32 elsewhere"),
]


class Architecture(Section):
    """The shape of a decoder: what `plan` needs to count bytes when no config.json is at hand."""

    hidden_size: Width = Field(description="width of the hidden states")
    intermediate_size: Width = Field(description="width of the MLP")
    num_hidden_layers: Few = Field(description="decoder layers")
    num_attention_heads: Width = Field(description="query heads")
    num_key_value_heads: Width = Field(description="key and value heads")
    vocab_size: Width = Field(description="rows of the embedding")
    head_dim: Width | None = key(None, "null: hidden_size / num_attention_heads")
    tie_word_embeddings: bool = key(False, "the head uses the embedding's weights")
    max_position_embeddings: Tokens | None = key(None, "longest sequence, with RoPE scaling; null: unknown")
    parameters: Parameters | None = key(None, "in all; null: those of a dense decoder of this shape")


LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


class LoRA(Section):
    """Adapters that are trained instead of the policy's weights (arXiv 2106.09685); by peft."""

    rank: Width = key(16, "inner width of an adapter")
    alpha: Width = key(32, "the update is alpha / rank x B A")
    target_modules: Literal["all-linear"] | list[Label] = key(
        "all-linear", "names of the layers that get adapters, or all-linear", min_length=1
    )
    quantize: Literal["nf4"] | None = key(None, "nf4: frozen weights in 4 bits (QLoRA, arXiv 2305.14314)")
    sync: Literal["merged", "adapter"] = key(
        "merged",
        "what engines of an online run get: the whole model with the adapters in its weights, or the adapters alone, beside "
        "their own copy of the base model: fewer bytes a sync, and slower generation",
    )

    def problems(self) -> Iterator[str]:
        if self.sync == "adapter" and self.quantize is not None:
            yield f"sync=adapter: engines hold the base model whole, the policy in 4 bits (quantize={self.quantize}); use sync=merged"
        if self.sync == "adapter" and self.rank > LORA_RANKS[-1]:
            yield f"sync=adapter: vLLM takes no rank={self.rank}, {LORA_RANKS[-1]} at most; lower it or use sync=merged"

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_alone(cls, value: object) -> object:
        """Text is a name, or several with commas between; peft would take it for a regular expression."""
        if not isinstance(value, str) or value == "all-linear":
            return value
        return [name.strip() for name in value.split(",")]


class ModelSettings(Section):
    """How a model is held."""

    precision: Precision = "auto"
    max_length: Annotated[Tokens, Field(gt=8)] = key(2048, "tokens of prompt and completion together")
    trust_remote_code: bool = key(False, "run Python code that comes with the model")
    architecture: Architecture | None = None
    thinking: Literal["template", "none"] | list[Label] = key(
        "template",
        "how its reasoning is delimited: two marks, as [<think>, </think>]; template: those that its chat template holds. Who "
        "scores or reads an answer gets what comes after it; training learns all",
    )

    def problems(self) -> Iterator[str]:
        if not isinstance(self.thinking, str) and len(self.thinking) != 2:
            yield f"thinking={self.thinking}: write two marks, as ['<think>', '</think>'], template or none"


class Model(ModelSettings):
    """The starting policy: a local directory, a hub id, or `offline://smollm2-135m-instruct`."""

    path: Address = Field(
        description="a local directory, a hub id (org/name, or pinned: org/name@REVISION) or offline://NAME"
    )
    chat_template: Address | None = key(None, "chatml, llama3 or a Jinja file; null: the tokenizer's own")
    lora: LoRA | None = key(None, "null: all weights are trained; the reference is then a second model")


class Reference(Section):
    """Which frozen policy the preference objective is anchored to, and when it moves."""

    update: Literal["initial", "previous", "ema"] = key(
        "initial", "the starting policy; previous: that of the round before; ema: a moving average of all"
    )
    ema_decay: Share = key(0.9, "for ema: the average's own share; the rest is the policy's", lt=1.0)
    micro_batch_tokens: ReplicaTokens = 16384


# Of an endpoint's settings those that decide on its answers; the others say how it is reached and what it may cost.
DECIDES = ("model", "structured", "length_field", "extra")
# Fields of a request's body that are ours to write.
_OURS = ("model", "messages", "stream", "n", "response_format", "max_tokens", "max_completion_tokens", "seed")


class Endpoint(Section):
    """Whom to ask. Limits hold for each process; budgets for all that a run asks of the model.

    `structured`: json_schema lets the endpoint hold to the schema; json_object lets it write JSON, with the
    schema in the prompt; prompt has the schema in the prompt alone. Replies are checked in every case.
    """

    model: Label = Field(min_length=1, description="as the API names it")
    base_url: WebAddress = Field(description="as http://host:8000/v1")
    api_key_env: KeyVariable = None
    requests_per_minute: PerMinute | None = key(None, "of each process; null: no limit")
    tokens_per_minute: PerMinute | None = key(None, "of prompts and answers together")
    concurrency: Concurrency = key(32, "requests at a time")
    timeout_s: Seconds = key(180.0, "seconds for one request")
    retries: Retries = key(6, "of a request, whatever is wrong with the reply")
    token_budget: Budget | None = key(None, "tokens that a run may use, in and out")
    money_budget: Money | None = key(None, "what a run may cost, in the prices' currency", gt=0.0)
    prompt_price: Money = key(0.0, "per million tokens")
    completion_price: Money = key(0.0, "per million tokens")
    structured: Literal["json_schema", "json_object", "prompt"] = key("json_schema", "how it is held to JSON")
    length_field: Literal["max_tokens", "max_completion_tokens"] = key(
        "max_tokens", "how the API calls the most tokens of an answer"
    )
    extra: Mapping[str, Any] = key({}, "further fields of each request's body; null leaves one of ours out")

    def problems(self) -> Iterator[str]:
        for name in _OURS:
            if name in self.extra:
                yield f"extra.{name}={self.extra[name]!r}: comes with each request; remove it"
        if self.money_budget is not None and self.prompt_price == self.completion_price == 0.0:
            yield (
                f"money_budget={self.money_budget:g}: nothing costs anything; set prompt_price and completion_price, or "
                "remove it"
            )
