"""The training ranks' CUDA branches on a machine without a GPU.

    device.cpp    gives torch's CPU build a device guard and an accelerator called "cuda"
    device.py     builds and loads it; tensors on cuda:0 are FakeTensors (shape, type, device), those on the host are real
    steps.py      a process of its own: models, tasks and optimizer steps there; prints what became of each
    test_fake_cuda.py

It shows operands on two devices, arguments that a kernel refuses (by torch's rule for its fake), gradients that are missing or
of another type, and each place that waits for the GPU. It shows no numbers, no speed and no memory: `pytest -m gpu` and
launch/gpu_check.sh do, where there is one.
"""
