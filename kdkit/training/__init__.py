"""Training: from a task and batches to a trained student, its checkpoints and its logs.

Where to look:
    distill.py      `kdkit distill` from configuration to report; components.py and create_task.py make its parts
    train.py        the loop: epochs, logs, checkpoints, stops, in order
    step.py         one step: teacher output, loss, gradients, update of the weights
                    (the loss is summed by the task, in kdkit/tasks/distillation.py)
    checkpoint.py   writes, keeps and restores checkpoints; state.py and rng.py hold their contents
    meter.py        collects the steps' terms and averages them over an epoch; finite.py finds a NaN among them
    logger.py       metrics.jsonl and summary.csv; trackers/ has TensorBoard, wandb and others; run.py has config.yaml
    optimizer.py    timm's optimisers and schedules; warmup.py, setup.py prepare task and weights
    evaluate.py     the student's metrics after an epoch; preflight.py, a check before the first step
    interrupt.py    stopping on SIGINT and SIGTERM
    student.py      reads a trained student back; export.py writes it for timm and ONNX
"""
