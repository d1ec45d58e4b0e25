"""From trained weights to better features without labels: what views of one picture tell, in closed form."""

from fgssl.adaptation.agreement import held_out_agreement, view_agreement
from fgssl.adaptation.whitening import ViewFeatures, embed_views, fit_whitening, whiten

__all__ = ["ViewFeatures", "embed_views", "fit_whitening", "held_out_agreement", "view_agreement", "whiten"]
