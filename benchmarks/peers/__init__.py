"""hyperflax beside transformers with PEFT, and beside T5X, in one run. See docs/peers.md."""
