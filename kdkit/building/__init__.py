"""Building: run a teacher over every view of every image and write a cache."""
