"""What `gpu_kernels.py` times, a topic a file."""
