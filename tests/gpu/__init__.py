"""What only an NVIDIA GPU can show: pytest -m gpu. launch/gpu_check.sh has the same, and how fast it is."""
