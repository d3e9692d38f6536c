"""The frozen T5: forward pass, decoding with a cache, option scoring, layer stacking."""
