"""The data factory's stages: each reads rows, carries a step over them, and keeps what it made."""
