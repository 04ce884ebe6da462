"""The configuration of a run. Free of torch.

`keys` and `schema` say what there is, `loading` reads and writes it; `values` and `yaml_texts` make values of texts,
and `paths` expands ~ and $VAR.
"""
