"""What several tests of data need."""

import pytest

from tests.tiny import make_tokenizer, tiny_config
from ultramed_rl.models.tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """One token a byte, beside ChatML's."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    tiny_config().save_pretrained(path)
    return ChatTokenizer(str(path))
