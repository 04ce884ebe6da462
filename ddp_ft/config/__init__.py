"""The configuration of a run: `schema` says what there is, `loading` reads and writes it. Free of torch."""
