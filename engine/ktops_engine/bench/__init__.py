"""Measuring a layer of routed experts on random weights of any shape. numpy, no torch.

`shapes` names the layers, `blocks` makes valid random blocks, `layer` packs them into memory as the
engine does, `timing` times calls beside plain reads, `accuracy` holds a result against float64.
"""
