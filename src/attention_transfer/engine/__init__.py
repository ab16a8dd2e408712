"""The engine: one training loop for every objective, and what it stands on."""
