"""Destinations of metrics: the run's own record, TensorBoard, MLflow, W&B, and classes of the user's."""
