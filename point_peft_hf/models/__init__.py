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

__all__ = [
    *auto.__all__,
    *point_bert.__all__,
    *point_gpt.__all__,
    *point_m2ae.__all__,
    *point_mae.__all__,
    *ptv3.__all__,
    *recon.__all__,
]
