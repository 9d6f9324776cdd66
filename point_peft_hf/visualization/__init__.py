"""Pictures of clouds, of what models make of them, and of how runs went: numpy in, a file out.

Clouds become interactive pages, which need nothing but a browser, or PNG files. PNG files need matplotlib (extra
`viz`), which is imported when the first one is drawn.
"""

from .cloud_image import save_cloud_image
from .colorings import inspection_colorings, nearest
from .curves import plot_confusion_matrix, plot_learning_curves
from .display import prepare_for_display
from .evaluation import ClassifiedClouds, classify_clouds
from .features import plot_features, project_features
from .inspection import CloudInspection, inspect_cloud
from .page import cloud_page, save_cloud_page
from .palette import category_colors
from .scene import Markers, PointColoring

__all__ = [
    "ClassifiedClouds",
    "CloudInspection",
    "Markers",
    "PointColoring",
    "category_colors",
    "classify_clouds",
    "cloud_page",
    "inspect_cloud",
    "inspection_colorings",
    "nearest",
    "plot_confusion_matrix",
    "plot_features",
    "plot_learning_curves",
    "prepare_for_display",
    "project_features",
    "save_cloud_image",
    "save_cloud_page",
]
