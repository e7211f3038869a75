"""Signatures of what we call in vLLM, DeepSpeed and flash-attn, as the versions have them that launch/locks name for CUDA.

    uses.py         every name, attribute and call of theirs in actors/, cluster/ and models/, found by reading our code
    make_table.py   looks them up in their sources and writes table.json; run it after a call or a version has changed
    table.json      what they take

tests/unit/test_signatures.py compares. The CUDA wheels need not be installed, and no GPU.
"""
