"""Using many adapters at once on one device.

`pool.py` keeps adapters: those in use stacked on the device, the others in host memory. `lane.py` is the pure part of
continuous batching: rows that join, decode a few tokens and leave, each with an adapter of its own. `engine.py` deals
requests out to lanes. Nothing is compiled again when adapters change.

    engine = Engine(model.model, model.base_params, spec)
    engine.add("dates", adapter.tree, adapter.spec)
    request = engine.submit(tokens, "dates")
    engine.run()
    request.tokens
"""
