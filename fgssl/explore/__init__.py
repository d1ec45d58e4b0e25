"""A folder of photographs looked over by their embeddings: map, groups, near copies, outliers, a varied selection.

embeddings -> neighbours -> layout (`layout`) -> groups (`groups`), copies (`copies`), selection (`selection`)
-> `survey`, which holds them all -> table (`table`), montages (`montage`) and page (`page`).
"""
