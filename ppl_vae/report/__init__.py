"""HTML: cards for notebooks, and reports that are one file each and need no network."""

from ppl_vae.report.cards import fit_html, model_html, table_html
from ppl_vae.report.choice import errors_html, selection_html
from ppl_vae.report.comparison import write_comparison
from ppl_vae.report.training import write_training

__all__ = [
    "errors_html",
    "fit_html",
    "model_html",
    "selection_html",
    "table_html",
    "write_comparison",
    "write_training",
]
