"""A data set looked over before anything is trained on it: what is in it, what cannot be read, what occurs twice.

pictures -> facts of each (`pictures`) -> copies (`similar`, `copies`) -> report and verdict (`report`, `verdict`).
Nothing here needs torch.
"""

from fgssl.check.report import Report, check_source

__all__ = ["Report", "check_source"]
