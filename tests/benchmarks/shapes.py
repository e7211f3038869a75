"""A model that a GPU check can train in a moment."""

from benchmarks.gpu_parts import Shape

TINY = Shape(
    "llama",
    dict(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    ),
    pack=64, prompt=6, answer=9,
)  # fmt: skip
