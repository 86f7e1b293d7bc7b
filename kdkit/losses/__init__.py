"""Distillation losses: pure functions f(student, teacher, ...), and a registry of them by name.

A new loss is one file with its declaration, and one line here.

Where to look:
    registry.py     `create` and the two decorators that register a loss
    logits          kl.py, divergence.py, logit_mse.py, decoupled.py, correlation.py, power.py, ofa.py, pseudo_label.py,
                    multi_level.py; standardize.py wraps them; multi_label.py compares one distribution per class;
                    sparse.py takes top-k teachers, multi_teacher.py several teachers
    features        hint.py, attention.py, relation.py, review.py, vitkd.py, mgd.py, srrl.py, crd.py, exits.py;
                    projection.py matches widths
    helpers         _checks.py, _features.py, _target.py check arguments; _rest.py, _expected.py, _pairs.py, _blocks.py,
                    _norm.py, _known.py compute; _first_order.py refuses second derivatives
"""

from kdkit.losses.attention import attention as attention
from kdkit.losses.correlation import dist as dist
from kdkit.losses.crd import CRD as CRD
from kdkit.losses.crd import crd as crd
from kdkit.losses.decoupled import dkd as dkd
from kdkit.losses.decoupled import nkd as nkd
from kdkit.losses.divergence import js as js
from kdkit.losses.divergence import reverse_kl as reverse_kl
from kdkit.losses.exits import OFAExits as OFAExits
from kdkit.losses.exits import ofa_exits as ofa_exits
from kdkit.losses.hint import hint_cosine as hint_cosine
from kdkit.losses.hint import hint_mse as hint_mse
from kdkit.losses.kl import deit_soft as deit_soft
from kdkit.losses.kl import kl as kl
from kdkit.losses.kl import soft_ce as soft_ce
from kdkit.losses.logit_mse import logit_mse as logit_mse
from kdkit.losses.mgd import MGD as MGD
from kdkit.losses.mgd import mgd as mgd
from kdkit.losses.multi_label import sigmoid_kl as sigmoid_kl
from kdkit.losses.multi_level import mlkd as mlkd
from kdkit.losses.multi_teacher import mean_teacher as mean_teacher
from kdkit.losses.multi_teacher import multi_teacher as multi_teacher
from kdkit.losses.ofa import ofa as ofa
from kdkit.losses.power import ttm as ttm
from kdkit.losses.power import wttm as wttm
from kdkit.losses.projection import Projected as Projected
from kdkit.losses.projection import Projection as Projection
from kdkit.losses.pseudo_label import bce as bce
from kdkit.losses.pseudo_label import hard as hard
from kdkit.losses.registry import Aligns as Aligns
from kdkit.losses.registry import LossSpec as LossSpec
from kdkit.losses.registry import available as available
from kdkit.losses.registry import compares_logits as compares_logits
from kdkit.losses.registry import create as create
from kdkit.losses.registry import feature_loss as feature_loss
from kdkit.losses.registry import is_feature_loss as is_feature_loss
from kdkit.losses.registry import logit_loss as logit_loss
from kdkit.losses.registry import loss_spec as loss_spec
from kdkit.losses.registry import needs_target as needs_target
from kdkit.losses.relation import pkt as pkt
from kdkit.losses.relation import rkd_angle as rkd_angle
from kdkit.losses.relation import rkd_distance as rkd_distance
from kdkit.losses.relation import similarity as similarity
from kdkit.losses.review import ReviewKD as ReviewKD
from kdkit.losses.review import review as review
from kdkit.losses.srrl import SRRL as SRRL
from kdkit.losses.srrl import srrl as srrl
from kdkit.losses.standardize import standardize as standardize
from kdkit.losses.standardize import standardized as standardized
from kdkit.losses.vitkd import ViTKD as ViTKD
from kdkit.losses.vitkd import vitkd as vitkd
from kdkit.types import SparseLogits as SparseLogits
from kdkit.types import to_compute_dtype as to_compute_dtype
