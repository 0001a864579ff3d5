"""Everything that touches tensors: reading checkpoints and data, the objective, its curvature."""
