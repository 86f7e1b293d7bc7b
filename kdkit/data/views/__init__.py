"""Views: random augmentations of an image that are reproducible from a seed.

Where to look:
    seed.py         the seed of a view, from the recipe's seed, the sample's key and the view's number
    transform.py    the transform of a recipe; custom.py, identity.py are for a transform that the user passes
    renderer.py     chooses between these and recorded views
    planes.py       the pixels of the finished view, channel by channel
    mixing.py       mixup and cutmix; erasing.py, random erasing
    recorded.py     views of an imported cache: recorded_renderer.py renders what record.py holds with operations.py,
                 instead of random draws
"""
