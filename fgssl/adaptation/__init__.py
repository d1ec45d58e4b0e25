"""From trained weights to better features without labels: what views of one picture tell, in closed form."""

from fgssl.adaptation.agreement import held_out_agreement, view_agreement
from fgssl.adaptation.whitening import ViewFeatures, embed_views, fit_whitening, whiten
from fgssl.adaptation.windows import fit_windows

__all__ = [
    "ViewFeatures", "embed_views", "fit_whitening", "fit_windows", "held_out_agreement", "view_agreement", "whiten",
]  # fmt: skip
