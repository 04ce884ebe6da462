"""Whatever reads or writes a run's folder."""
