"""The tuner: which fine-tuning pipeline, for a new data set, under a budget; and data sets to learn that from."""
