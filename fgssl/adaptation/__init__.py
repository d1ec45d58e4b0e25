"""From trained weights to better features without labels: what views of one picture tell, in closed form."""

from fgssl.adaptation.neighbours import START, Judgement, best_of, judge
from fgssl.adaptation.whitening import ViewFeatures, embed_views, fit_whitening, whiten
from fgssl.adaptation.windows import fit_windows

__all__ = [
    "START", "Judgement", "ViewFeatures", "best_of", "embed_views", "fit_whitening", "fit_windows", "judge", "whiten",
]  # fmt: skip
