"""The configuration of a run: `keys` and `schema` say what there is, `loading` reads and writes it. Free of torch."""
