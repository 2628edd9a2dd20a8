"""Pretrained models, one folder each.  None is shipped yet: version 0.1 predicts without learned models."""
