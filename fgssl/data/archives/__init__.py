"""Data sets as their authors published them: unpacked archives, read by their own lists.

layouts/      a file an archive: by which files it is known, what was published, how its lists are read
layout.py     what such a file says: `Layout`, `Contents`, `Split`, `Count`
lists.py      reading lists: text, JSON, MATLAB (matlab.py), with one line for what is missing or does not fit
source.py     the archive behind `--data cub:FOLDER`, or in a plain FOLDER; its images with boxes, parts, segmentations
rehearsal.py  small archives of the same layout, drawn
"""
