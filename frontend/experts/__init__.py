"""Mixture-of-experts layers of models: transformers' interface, quantised experts, gradients."""
