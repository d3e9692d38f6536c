"""Jobs of the tuner: runs pipelines on data sets, collects their records, and finds one for a new data set."""
