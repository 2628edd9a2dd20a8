"""Training of models and writing of packs.

Only modules below this one may import torch (the extra ``train``), and only when they are asked to train; the
writer of packs, `aesz_codec.train.packing`, needs none.
"""
