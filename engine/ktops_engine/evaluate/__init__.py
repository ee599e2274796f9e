"""How good a model's predictions of a text are, and how far from those of another run.

Two runs of one text tell whether a change of kernels, weight formats or placement changes what the
model says. Nothing here generates.
"""
