"""Data: from examples to batches, numpy only.

vocabularies -> examples (sources by task and index) -> episode_plan (what fits) -> episodes (batches pure in seed and
step) by way of rendering (where demonstrations become tokens). batches and text make plain T5 batches. cache writes
tokens as ArrayRecord shards, cache_source reads them. seqio_source and jsonl bring examples in, registry gives them
names. Only seqio_source imports seqio and TensorFlow, when it is called.
"""
