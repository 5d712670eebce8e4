"""Building, checking, packing and rechecking an image release.

Knows the ports, the model and the protocol; never the controller.
"""
