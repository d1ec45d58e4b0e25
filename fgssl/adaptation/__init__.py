"""From trained weights to better features without labels: view whitening."""

from __future__ import annotations

from fgssl.adaptation.views import whiten
from fgssl.adaptation.whitening import Whitening, fit_whitening

__all__ = ["Whitening", "fit_whitening", "whiten"]
