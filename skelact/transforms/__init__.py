"""Modules that act on whole batches, on the batch's device."""
