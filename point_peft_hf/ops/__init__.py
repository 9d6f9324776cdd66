"""Operations on point clouds: sampling, neighbours, grouping, interpolation weights, voxels, checks of the input."""

from .chamfer import chamfer_distance
from .curves import CURVES, curve_codes, grid_depth
from .grouping import gather_points, group_points
from .interpolation import interpolate_features, inverse_distance_weights
from .neighbors import knn_indices
from .ordering import greedy_path, morton_keys
from .packed import Clusters, cluster_max, cluster_mean, reorder, spread
from .rotation import rope_frequencies, rotate, rotation
from .sampling import farthest_point_sample
from .submanifold import NeighborTable, submanifold_conv
from .validation import validate_points

__all__ = [
    "CURVES",
    "Clusters",
    "NeighborTable",
    "chamfer_distance",
    "cluster_max",
    "cluster_mean",
    "curve_codes",
    "farthest_point_sample",
    "gather_points",
    "greedy_path",
    "grid_depth",
    "group_points",
    "interpolate_features",
    "inverse_distance_weights",
    "knn_indices",
    "morton_keys",
    "reorder",
    "rope_frequencies",
    "rotate",
    "rotation",
    "spread",
    "submanifold_conv",
    "validate_points",
]
