"""Ways to claim a model, one method a module."""
