"""Everything that touches tensors: reading checkpoints and data, the objective, its curvature."""

VERSION = "0.1.0"  # of Theodolite, as on every card
