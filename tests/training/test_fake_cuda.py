"""Training, reading and encoding on a GPU that computes nothing: every tensor is on its device, and no step waits.

What needs the values of a real GPU is in benchmarks/gpu.py. A loss scaler for float16 reads one number per update, by
torch's design, so that the update of float16 is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fake_cuda import CUDA, FakeGPU, NoWaiting, Peak, fake_gpu
from support import digits_dataset, tiny_model
from task_rows import FEATURE, LOGIT
from torch import Tensor, nn

from kdkit import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TeacherEnsemble,
    TokenDistillationTask,
    build_cache,
    create_teacher,
    open_cache,
)
from kdkit.building.config import BuildConfig
from kdkit.building.encoder import ShardEncoder
from kdkit.cache.codecs import RowCodec, create_codec, create_feature_codec
from kdkit.cache.codecs.search import chunk_rows
from kdkit.data import EpochSampler, ReplayLoader
from kdkit.tasks import LossTerm, MultiLabelClassificationTask, MultiLabelDistillationTask, TrainingTask
from kdkit.training.config import TrainConfig
from kdkit.training.setup import start_average
from kdkit.training.state import RunState
from kdkit.training.step import TrainingStep, choose_source
from kdkit.types import Batch, Normalization

TAPS = ("blocks.0", "blocks.1")
OPTIONS: dict[str, dict[str, Any]] = {
    "vitkd": {"student_taps": TAPS, "teacher_taps": TAPS},
    "review": {"student_taps": TAPS, "teacher_taps": TAPS},
    "attention": {"student_taps": TAPS[1:2], "teacher_taps": TAPS[1:2]},
    "mgd": {"student_taps": TAPS[1:2], "teacher_taps": TAPS[1:2]},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    with fake_gpu(monkeypatch) as gpu:
        yield gpu


def small_vit(name: str = "test_vit") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, img_size=32, depth=2, embed_dim=32, num_heads=2)


def features() -> list[LossTerm]:
    return [LossTerm(loss, 1.0, **OPTIONS.get(loss, {})) for loss in FEATURE]


TASKS: dict[str, Any] = {
    "labels": lambda: ClassificationTask(small_vit()),
    "labels, convolutions": lambda: ClassificationTask(tiny_model()),
    "logits": lambda: LogitDistillationTask(
        small_vit(), create_teacher(small_vit()), distill_loss=[LossTerm(loss) for loss in LOGIT]
    ),
    "logits, ensemble": lambda: LogitDistillationTask(
        small_vit(), TeacherEnsemble([create_teacher(small_vit()), create_teacher(small_vit())])
    ),
    "features": lambda: FeatureDistillationTask(small_vit(), small_vit(), distill_loss=[*features(), LossTerm("kl")]),
    "tokens": lambda: TokenDistillationTask(
        small_vit("deit_tiny_distilled_patch16_224"), small_vit(), distill_loss=[LossTerm(loss) for loss in LOGIT]
    ),
    "several labels": lambda: MultiLabelClassificationTask(small_vit()),
    "several labels, distilled": lambda: MultiLabelDistillationTask(small_vit(), create_teacher(small_vit())),
}
"""Task -> all losses that it takes, as terms of one sum."""


def batch_for(task: TrainingTask, device: torch.device = CUDA) -> Batch:
    several = isinstance(task, (MultiLabelClassificationTask, MultiLabelDistillationTask))
    target = torch.rand(6, 10, device=device).round() if several else torch.randint(10, (6,), device=device)
    return Batch(torch.randn(6, 3, 32, 32, device=device), target)


STEPS = [
    *((name, "bfloat16") for name in TASKS),
    *((name, None) for name in ("labels, convolutions", "logits", "features")),
    *((name, "float16") for name in ("logits", "features")),
]


@pytest.mark.parametrize(("name", "amp"), STEPS)
def test_a_step_stays_on_the_gpu_and_never_waits_for_it(name: str, amp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS[name]()
    config = TrainConfig(epochs=1, opt="sgd", amp=amp, ema_decay=0.9, clip_grad=1.0, channels_last=True)
    start_average(task, config)
    with fake_gpu(monkeypatch):
        task.to(CUDA)
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cuda", enabled=amp == "float16")
        step = TrainingStep(
            RunState(task, optimizer, None, scaler, CUDA), config, choose_source(task, None, Normalization())
        )
        batch = batch_for(task)
        task.train()
        with NoWaiting():
            result, _ = step.backward(batch, group_size=1, is_update=True, log_gradients=False)
            if amp != "float16":
                step.update()
        assert {value.device for value in result.values()} == {CUDA}
        assert {tensor.device for tensor in (*task.parameters(), *task.buffers())} == {CUDA}


def fitted_lowrank(num_classes: int, row_bytes: int) -> RowCodec:
    """A lowrank codec of full rank, whose components are drawn."""
    codec: Any = create_codec("lowrank", num_classes, row_bytes=row_bytes)
    rank = min(codec.max_rank, codec._free_bits)
    draw = np.random.default_rng(0)
    arrays = {
        "mean": np.zeros(num_classes, np.float32),
        "basis": (draw.standard_normal((rank, num_classes)) / num_classes**0.5).astype(np.float16),
        "step": np.ones(rank, np.float32),
        "bits": np.ones(rank, np.uint8),
    }
    found: RowCodec = codec.with_arrays(arrays)
    return found


CODECS: dict[str, tuple[Any, tuple[int, ...]]] = {
    **{
        name: (lambda name=name: create_codec(name, 50), (50,))
        for name in ("float32", "float16", "int8", "topk", "sigmoid_float32", "sigmoid_float16", "sigmoid_int8")
    },
    "lowrank": (lambda: fitted_lowrank(50, 24), (50,)),
    **{
        f"feature {name}": (lambda name=name: create_feature_codec(name, (4, 5)), (4, 5))
        for name in ("float16", "int8")
    },
    "feature sparse": (lambda: create_feature_codec("sparse", (4, 5), has_signs=True), (4, 5)),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_codec_encodes_and_decodes_on_the_gpu_without_waiting(name: str, dtype: torch.dtype, gpu: FakeGPU) -> None:
    make, shape = CODECS[name]
    codec, values = make(), torch.randn(9, *shape, device=CUDA, dtype=dtype)
    codec.decode(codec.encode(values))  # the codec's tables are uploaded once
    with NoWaiting():
        held, encoded = codec.is_encodable(values), codec.encode(values)
        decoded = codec.decode(encoded)
    assert (encoded.shape, encoded.dtype, encoded.device) == ((9, codec.row_bytes), torch.uint8, CUDA)
    assert (decoded.shape, decoded.dtype, decoded.device) == (values.shape, torch.float32, CUDA)
    assert held.device == CUDA


@pytest.mark.parametrize(("num_classes", "row_bytes"), [(1000, 24), (1000, 96), (21_841, 96)])
def test_encoding_has_one_shape_and_takes_at_most_a_gibibyte(num_classes: int, row_bytes: int, gpu: FakeGPU) -> None:
    codec = fitted_lowrank(num_classes, row_bytes)
    with Peak() as peak:
        codec.encode(torch.randn(1, num_classes, device=CUDA))  # a chunk is as long whatever the batch
    assert peak.most <= 2**30
    (shape,) = peak.factored
    assert shape[0] == chunk_rows(num_classes, len(codec.arrays["bits"]), CUDA) <= 256


def test_a_loader_copies_ahead_on_one_stream_in_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = digits_dataset(24)
    sampler = EpochSampler(range(len(dataset)), 8, num_views=2)
    batches = list(ReplayLoader(dataset, sampler, Normalization()).pixel_batches())
    with fake_gpu(monkeypatch) as gpu:
        loader = ReplayLoader(dataset, sampler, Normalization(), device=CUDA)
        monkeypatch.setattr(loader, "pixel_batches", lambda: iter(batches))
        with NoWaiting():
            for _ in range(3):
                assert [(b.input.device, b.target.device, b.row.device.type) for b in loader] == 3 * [
                    (CUDA, CUDA, "cpu")
                ]
    assert [stream.name for stream in gpu.streams] == ["stream 0"]
    assert gpu.log.count("stream 0 waits for main") == 3  # once in each epoch
    assert gpu.log.count("main waits for stream 0's event") == 9
    assert gpu.log.count("memory kept for main") == 18  # input and target


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fake_cuda")
    for seed, codec in enumerate(("lowrank", "topk")):
        config = BuildConfig(codec=codec, streams=("logits", "pooled")[: 2 - seed], num_workers=0, row_bytes=12)
        build_cache(create_teacher(tiny_model(seed=seed)), digits_dataset(24), folder / f"{seed}.h5", config)
    return folder / "0.h5", folder / "1.h5"


@pytest.mark.parametrize("which", ["packed", "sparse", "a mixture"])
def test_a_cache_reads_onto_the_gpu_without_waiting(
    which: str, caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = digits_dataset(24)
    if which == "a mixture":
        cache = open_cache(caches, dataset, streams=["logits"])
    else:
        cache = open_cache(caches[which == "sparse"], dataset, **({"sparse": True} if which == "sparse" else {}))
    row, view = torch.arange(6), torch.ones(6, dtype=torch.int64)
    with fake_gpu(monkeypatch):
        batch = Batch(torch.randn(6, 3, 32, 32, device=CUDA), torch.zeros(6, dtype=torch.int64, device=CUDA), row, view)
        cache(batch)  # the codecs' tables are uploaded once
        with NoWaiting():
            output = cache(batch)
        found = [output.any_logits, *output.features.values()]
        tensors = [part for values in found for part in (vars(values).values() if which == "sparse" else [values])]
        assert {part.device for part in tensors if isinstance(part, Tensor)} == {CUDA}


def test_the_encoder_has_a_stream_of_high_priority(gpu: FakeGPU) -> None:
    ShardEncoder(None, {}, None, "teacher", [], CUDA)  # type: ignore[arg-type]
    assert [stream.priority for stream in gpu.streams] == [-1]
