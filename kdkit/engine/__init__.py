"""The engine: what joins the rooms. Building a cache, training, evaluating, logging."""
