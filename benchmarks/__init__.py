"""Measurements that take minutes to hours; run by hand from the top of the clone."""
