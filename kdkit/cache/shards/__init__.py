"""Shards: one sealed file per view and range of rows, their manifest, the writer's lock; readers of packed ones."""
