"""Adapters: small matrices beside a network's layers, which learn in place of the layers' own weights."""
