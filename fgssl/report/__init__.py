"""Pages to open in a browser: one HTML file each, with its pictures, data and plots inside; nothing is fetched.

The shell is `page`, made of `Section`s; a page of its own is a module that turns results into sections.
"""

from fgssl.report.embedding import Colouring, embedding_map
from fgssl.report.page import PAGE, page, save_page
from fgssl.report.pictures import thumbnails
from fgssl.report.sections import Section, facts, gallery, note, table

__all__ = [
    "PAGE",
    "Colouring",
    "Section",
    "embedding_map",
    "facts",
    "gallery",
    "note",
    "page",
    "save_page",
    "table",
    "thumbnails",
]
