"""The 3D adapter types. Importing this package registers them with `peft`."""

from .base import SlotTuner
from .config import PointTunerConfig
from .dapt import DAPTConfig, DAPTModel
from .explain import Picture, Places, References
from .gaprompt import GAPromptConfig, GAPromptModel
from .geometry_adapter import GeometryAdapterConfig, GeometryAdapterModel
from .idpt import IDPTConfig, IDPTModel
from .mixing import active_adapters, add_adapters, load_adapters, save_adapters, set_adapters
from .patch_prompt import PatchPromptConfig, PatchPromptModel
from .point_peft import PointPeftConfig, PointPeftModel
from .point_prior_prompt import (
    PointPriorBank,
    PointPriorPromptConfig,
    PointPriorPromptModel,
    RetrievalReport,
    build_point_prior_bank,
    compress_bank,
    explain_retrieval,
    set_point_prior_bank,
)
from .pointgst import PointGSTConfig, PointGSTModel
from .pointlora import PointLoRAConfig, PointLoRAModel
from .ppt import PPTConfig, PPTModel
from .registry import register_method
from .slot_layer import BranchLayer, SlotLayer
from .stag import STAGConfig, STAGModel
from .targets import register_default_targets
from .voxel_adapter import VoxelAdapterConfig, VoxelAdapterModel

__all__ = [
    "BranchLayer",
    "DAPTConfig",
    "DAPTModel",
    "GAPromptConfig",
    "GAPromptModel",
    "GeometryAdapterConfig",
    "GeometryAdapterModel",
    "IDPTConfig",
    "IDPTModel",
    "PPTConfig",
    "PPTModel",
    "PatchPromptConfig",
    "PatchPromptModel",
    "Picture",
    "Places",
    "PointGSTConfig",
    "PointGSTModel",
    "PointLoRAConfig",
    "PointLoRAModel",
    "PointPeftConfig",
    "PointPeftModel",
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "PointTunerConfig",
    "References",
    "RetrievalReport",
    "STAGConfig",
    "STAGModel",
    "VoxelAdapterConfig",
    "VoxelAdapterModel",
    "SlotLayer",
    "SlotTuner",
    "active_adapters",
    "add_adapters",
    "build_point_prior_bank",
    "compress_bank",
    "explain_retrieval",
    "load_adapters",
    "register_default_targets",
    "register_method",
    "save_adapters",
    "set_adapters",
    "set_point_prior_bank",
]
