"""Groups -> tokens -> blocks -> head: the pre-trained point transformers."""

# ruff: noqa: F403
from . import auto, point_bert, point_gpt, point_m2ae, point_mae, ptv3, recon
from .auto import *
from .point_bert import *
from .point_gpt import *
from .point_m2ae import *
from .point_mae import *
from .ptv3 import *
from .recon import *

_PARTS = (auto, point_bert, point_gpt, point_m2ae, point_mae, ptv3, recon)
__all__ = [name for part in _PARTS for name in part.__all__]
