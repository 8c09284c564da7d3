"""Passes over the emitted StableHLO module, one file each."""
