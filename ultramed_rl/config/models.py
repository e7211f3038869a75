"""Which models a run starts from, and how they are held in memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Count,
    Factor,
    Few,
    Label,
    LearningRate,
    Parameters,
    PositiveShare,
    PositiveTemperature,
    Share,
    Temperature,
    Tokens,
    Width,
)
from ultramed_rl.config.rewards import Ensemble, RewardTerm
from ultramed_rl.config.training import Optimization

Precision = Literal["auto", "bfloat16", "float32"]


class Architecture(Section):
    """The shape of a decoder: what `plan` needs to count bytes when no config.json is at hand."""

    hidden_size: Width = Field(description="width of the hidden states")
    intermediate_size: Width = Field(description="width of the MLP")
    num_hidden_layers: Few = Field(description="decoder layers")
    num_attention_heads: Width = Field(description="query heads")
    num_key_value_heads: Width = Field(description="key and value heads")
    vocab_size: Width = Field(description="rows of the embedding")
    head_dim: Width | None = Field(default=None, description="null: hidden_size / num_attention_heads")
    tie_word_embeddings: bool = Field(default=False, description="the head uses the embedding's weights")
    max_position_embeddings: Tokens | None = Field(
        default=None, description="longest sequence, RoPE scaling included; null: not checked"
    )
    parameters: Parameters | None = Field(
        default=None, description="in all; null: those of a dense decoder of this shape"
    )


class LoRA(Section):
    """Adapters that are trained instead of the policy's weights (arXiv 2106.09685); by peft."""

    rank: Width = Field(default=16, description="inner width of an adapter")
    alpha: Width = Field(default=32, description="the update is alpha / rank x B A")
    target_modules: Literal["all-linear"] | list[Label] = Field(
        default="all-linear", min_length=1, description="names of the layers that get adapters, or all-linear"
    )
    quantize: Literal["nf4"] | None = Field(
        default=None, description="nf4: hold the frozen weights in 4 bits (QLoRA, arXiv 2305.14314)"
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_alone(cls, value: object) -> object:
        """Text is a name, or several with commas between; peft would take it for a regular expression."""
        if not isinstance(value, str) or value == "all-linear":
            return value
        return [name.strip() for name in value.split(",")]


class ModelSettings(Section):
    """How a model is held."""

    precision: Precision = Field(
        default="auto",
        description="auto: bfloat16 where the device computes it natively, float32 elsewhere",
    )
    max_length: Annotated[Tokens, Field(gt=8)] = Field(
        default=2048, description="tokens of prompt and completion together"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    architecture: Architecture | None = None


class Model(ModelSettings):
    """The starting policy: a local directory, a hub id, or `offline://smollm2-135m-instruct`."""

    path: Address = Field(description="a local directory, a hub id or offline://NAME")
    chat_template: Address | None = Field(
        default=None,
        description="chatml, llama3 or a Jinja file, for a base model; null: its tokenizer's own",
    )
    lora: LoRA | None = Field(
        default=None, description="null: all weights are trained; the reference is then a second model"
    )


class Reference(Section):
    """Which frozen policy the preference objective is anchored to, and when it moves."""

    update: Literal["initial", "previous", "ema"] = Field(
        default="initial",
        description="initial: the starting policy; previous: that of the round before; ema: a moving average of all",
    )
    ema_decay: Share = Field(
        default=0.9,
        lt=1.0,
        description="for ema: the average's own share when it moves; the new policy has the rest",
    )
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one replica"
    )


class ContrastSampling(Section):
    """How a policy's own answers are drawn for contrasts: see `ultramed_rl.data.contrasts`."""

    prompts: Annotated[Count, Field(gt=1)] = Field(
        default=64, description="prompts whose answers are contrasted"
    )
    calm_temperature: Temperature = Field(default=0.3, description="temperature of the answers preferred")
    wild_temperature: PositiveTemperature = Field(
        default=1.3, description="temperature of the incoherent ones"
    )
    max_new_tokens: Tokens = Field(default=64, description="longest answer")


class Contrast(ContrastSampling):
    """Reward training data made by the run itself."""

    type: Literal["contrast"] = "contrast"
    held_out: PositiveShare = Field(
        default=0.2,
        lt=1.0,
        description="share of the pairs on which the reward model's accuracy is measured",
    )


class RewardTraining(Optimization):
    """How the run trains its own Bradley-Terry reward model before the first round."""

    data: Contrast = Contrast()
    learning_rate: LearningRate = Field(default=2e-5, description="highest rate of the schedule")
    batch_size: BatchSize = Field(default=16, description="pairs per optimizer step, over all ranks")
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass, to save memory"
    )
    trainable_layers: Few | None = Field(
        default=None, description="train only the last k decoder layers and the head; null: all"
    )


class Reward(Section):
    """What scores completions: a trained `num_labels=1` classifier (`path`), several of them (`ensemble`), or
    one trained in the same run (`train`); and `terms` that are added by weight, or stand alone."""

    path: Address | None = Field(
        default=None, description="a trained reward model: a local directory or a hub id"
    )
    train: RewardTraining | None = None
    ensemble: Ensemble | None = None
    weight: Factor = Field(default=1.0, description="of the reward model beside the terms")
    terms: list[RewardTerm] = Field(
        default=[], description="rules, servers and judges that are added by weight, or score alone"
    )
    precision: Precision = Field(
        default="auto",
        description="of reward models; auto: bfloat16 where the device computes it natively, float32 elsewhere",
    )
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one replica"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with a reward model"
    )
    architecture: Architecture | None = None

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The reward models: None is the one that the run trains itself; none where terms alone score."""
        if self.ensemble is not None:
            return tuple(self.ensemble.paths)
        return (self.path,) if self.path is not None or self.train is not None else ()
