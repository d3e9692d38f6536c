"""Which fine-tuning pipeline for a new data set, learnt from earlier runs on others (docs/tuner.md)."""
