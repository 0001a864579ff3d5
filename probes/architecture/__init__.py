"""What the tensors of a checkpoint belong to: families by names and shapes, pasted text, chains of layers."""
