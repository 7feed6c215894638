"""The DnD transformer: model, training, sampling, evaluation."""
