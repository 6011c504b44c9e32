"""Writers of model files, one a format, independent of the product: same weights, so that logits can be compared."""
