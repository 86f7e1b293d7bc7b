"""Training: from a task and batches to a trained student, its checkpoints and its logs.

Where to look:
    distill.py      `kdkit distill` from configuration to report; components.py and create_task.py make its parts
    config.py       settings of the command; train_config.py, optimiser, schedule and loop
    train.py        the loop: epochs, logs, checkpoints, stops, in order
    step.py         one step: teacher output, loss, gradients, update of the weights
                    (the loss is summed by the task, in kdkit/tasks/distillation.py)
    checkpoint.py   writes, keeps and restores checkpoints; state.py and rng.py hold their contents,
                    checkpoint_file.py checks a file before it is used
    meter.py        collects the steps' terms and averages them over an epoch; finite.py finds a NaN among them
    logger.py       metrics.jsonl and summary.csv; trackers/ has TensorBoard and wandb; run.py writes config.yaml
    header.py       the description before the first step; report.py, the result of a run
    live.py         the live teacher of a run, and the precision that it runs in
    optimizer.py    timm's optimisers and schedules; warmup.py, setup.py prepare task and weights
    frozen.py       epochs in which the head learns alone
    evaluate.py     the student's metrics after an epoch; preflight.py, a check before the first step
    validation.py   the images that they are measured on, compared with the student's classes
    labels.py       checks the labels of the run's images; selection.py takes a part of the classes or images
    data_record.py  the images that a run resumes with or not at all; image_record.py, their files
    confidence.py   leaves out views by the teacher's predictions
    loading.py      how many views one decode serves, where the run is to choose
    interrupt.py    stopping on SIGINT and SIGTERM
    export.py       writes the student for timm and ONNX (kdkit/student.py reads it back); model_card.py its README.md
"""
