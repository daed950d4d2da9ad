"""Losses and gathers: functions of tensors, nothing else.

Conventions: B is the global batch (all ranks), D the embedding width. Every function is differentiable and keeps
its inputs on their device; none of them reads a value back to the host.
"""

from skelact.objectives.actionmae import reconstruction_loss
from skelact.objectives.contrastive import cosine_distance, cross_entropy_of_positives, mimic, nearest
from skelact.objectives.ranks import (
    all_reduce,
    at_least_single,
    gather,
    global_mean,
    largest,
    own_rows,
    without_autocast,
    world_size,
)
from skelact.objectives.supcon import supcon
from skelact.objectives.umurl import UmURLTerms, umurl_loss, vc_regularisation

__all__ = [
    "UmURLTerms",
    "all_reduce",
    "at_least_single",
    "cosine_distance",
    "cross_entropy_of_positives",
    "gather",
    "global_mean",
    "largest",
    "mimic",
    "nearest",
    "own_rows",
    "reconstruction_loss",
    "supcon",
    "umurl_loss",
    "vc_regularisation",
    "without_autocast",
    "world_size",
]
