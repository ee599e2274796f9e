"""The C++ kernels: building them into a cache, loading them, calling them. Standard library only.

`build` turns the C++ sources into `libktops.so`, `load` opens it with ctypes and checks that it is
the one this code was written for. Pointers cross here as plain integers: whoever calls `Pool`
answers for dtype, shape and contiguity.
"""
