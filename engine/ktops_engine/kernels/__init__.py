"""Triton kernels, one idea a file: each with its launcher. Tests hold them against plain torch."""
