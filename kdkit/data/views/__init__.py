"""Views: random augmentations of an image that are reproducible from a seed.

Where to look:
    seed.py         the seed of a view, from the recipe's seed, the sample's key and the view's number
    renderer.py     what renders a recipe's views: transform.py; or custom.py and identity.py, the user's transform
    mixing.py       mixup and cutmix; erasing.py, random erasing
    recorded.py     views of an imported cache, rendered from record.py with operations.py instead of random draws
"""
