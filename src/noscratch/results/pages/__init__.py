"""The pages of the site: one module per kind, each turning `Evidence` into pages; `markup` and `charts` are their words."""
