"""Encoders: one architecture a file, one contract (:mod:`skelact.backbones.base`)."""
