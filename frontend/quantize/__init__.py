"""Quantising the layers of a model, and multiplying by quantised weights."""
