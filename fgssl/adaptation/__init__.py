"""From trained weights to better features without labels: what views of one picture tell, in closed form."""

from fgssl.adaptation.neighbours import held_out_standing_out, standing_out
from fgssl.adaptation.whitening import ViewFeatures, embed_views, fit_whitening, whiten
from fgssl.adaptation.windows import fit_windows

__all__ = [
    "ViewFeatures", "embed_views", "fit_whitening", "fit_windows", "held_out_standing_out", "standing_out", "whiten",
]  # fmt: skip
