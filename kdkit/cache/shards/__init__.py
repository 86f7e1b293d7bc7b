"""Shards: one sealed file per view and range of rows, their manifest, and the writer's lock."""
