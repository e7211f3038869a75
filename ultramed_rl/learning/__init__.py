"""The maths of preference learning: tensors and numbers in, tensors and numbers out. No config, no I/O."""
