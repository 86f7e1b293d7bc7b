"""Distillation losses: pure functions f(student, teacher, ...), and a registry of them by name."""

from kdkit.losses._checks import to_compute_dtype
from kdkit.losses.attention import attention
from kdkit.losses.correlation import dist
from kdkit.losses.decoupled import dkd, nkd
from kdkit.losses.hint import hint_cosine, hint_mse
from kdkit.losses.kl import deit_soft, kl, soft_ce
from kdkit.losses.multi_teacher import mean_teacher, multi_teacher
from kdkit.losses.ofa import ofa
from kdkit.losses.power import ttm, wttm
from kdkit.losses.projection import Projected, Projection
from kdkit.losses.pseudo_label import bce, hard
from kdkit.losses.registry import available, create, is_feature_loss, needs_target
from kdkit.losses.relation import pkt, rkd_angle, rkd_distance, similarity
from kdkit.losses.review import ReviewKD, review
from kdkit.losses.sparse import SparseLogProbs
from kdkit.losses.standardize import standardize, standardized
from kdkit.losses.vitkd import ViTKD, vitkd

__all__ = [
    "Projected",
    "Projection",
    "ReviewKD",
    "SparseLogProbs",
    "ViTKD",
    "attention",
    "available",
    "bce",
    "create",
    "deit_soft",
    "dist",
    "dkd",
    "hard",
    "hint_cosine",
    "hint_mse",
    "is_feature_loss",
    "kl",
    "mean_teacher",
    "multi_teacher",
    "needs_target",
    "nkd",
    "ofa",
    "pkt",
    "review",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "soft_ce",
    "standardize",
    "standardized",
    "to_compute_dtype",
    "ttm",
    "vitkd",
    "wttm",
]
