"""The pages of the site: one module per kind, each turning `Evidence` into pages with `markup` and `charts`."""
