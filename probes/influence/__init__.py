"""Which training examples helped or hurt a prediction: inner products of gradients over a run, or by the Fisher."""
