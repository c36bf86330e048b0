"""Policies: ordinary modules from observations to actions, unaware of any perturbation."""

from es_flipout.policies.activations import ACTIVATIONS, ELU, SiLU
from es_flipout.policies.cnn import CNNPolicy
from es_flipout.policies.factory import POLICIES, make_policy
from es_flipout.policies.flat_box import FlatBox, flat_box
from es_flipout.policies.heads import (
    ActionHead,
    BoxActions,
    DiscreteActions,
    IntegerActions,
    MultiDiscreteActions,
    make_action_head,
)
from es_flipout.policies.initialization import OUTPUT_GAIN
from es_flipout.policies.mlp import LinearPolicy, MLPPolicy, is_plain_mlp
from es_flipout.policies.observations import box, vector_box
from es_flipout.policies.recurrent import GRUPolicy, LSTMPolicy, RecurrentPolicy
from es_flipout.policies.stacked import StackedPolicy, stacked_space
from es_flipout.policies.structured import StructuredPolicy

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "OUTPUT_GAIN",
    "POLICIES",
    "ActionHead",
    "BoxActions",
    "CNNPolicy",
    "DiscreteActions",
    "FlatBox",
    "GRUPolicy",
    "IntegerActions",
    "LSTMPolicy",
    "LinearPolicy",
    "MLPPolicy",
    "MultiDiscreteActions",
    "RecurrentPolicy",
    "SiLU",
    "StackedPolicy",
    "StructuredPolicy",
    "box",
    "flat_box",
    "is_plain_mlp",
    "make_action_head",
    "make_policy",
    "stacked_space",
    "vector_box",
]
