"""The two random views of a training image, and the one evaluation view.

Parameters are drawn first (`draw_views`) and applied afterwards, by the CPU picture by picture (`make_views`) or by any
device in one go (`fgssl.views.device`). Images come and go as levels 0 to 255, normalised on the training device.
"""

from __future__ import annotations

from fgssl.views.cpu import EvaluationView, make_views, resize_short_side
from fgssl.views.draw import DRAWS, Views, draw_views

__all__ = ["DRAWS", "EvaluationView", "Views", "draw_views", "make_views", "resize_short_side"]
