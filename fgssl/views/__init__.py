"""The two random views of a training image, and the one evaluation view.

Parameters are drawn first (`draw_views`, numpy, one definition) and applied afterwards, by the CPU picture by picture
(`make_views`) or by any device in one go (`fgssl.views.device`). Each resizes and colours in its own way, and the tests
hold both to torchvision. Images come and go as levels 0 to 255; normalisation happens on the training device.
"""

from __future__ import annotations

from fgssl.views.cpu import make_views
from fgssl.views.draw import DRAWS, Views, draw_views
from fgssl.views.evaluation import EvaluationView, resize_short_side

__all__ = ["DRAWS", "EvaluationView", "Views", "draw_views", "make_views", "resize_short_side"]
