"""Runtime: what every room above shares, such as ranks, durable files, progress and output folders."""
