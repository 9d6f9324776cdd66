"""Operations on point clouds: sampling, neighbours, grouping, interpolation weights, checks of the input."""

from .chamfer import chamfer_distance
from .grouping import gather_points, group_points
from .interpolation import interpolate_features, inverse_distance_weights
from .neighbors import knn_indices
from .ordering import greedy_path, morton_keys
from .sampling import farthest_point_sample
from .validation import validate_points

__all__ = [
    "chamfer_distance",
    "farthest_point_sample",
    "gather_points",
    "greedy_path",
    "group_points",
    "interpolate_features",
    "inverse_distance_weights",
    "knn_indices",
    "morton_keys",
    "validate_points",
]
