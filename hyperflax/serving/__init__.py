"""Using many adapters at once on one device.

`pool.py` keeps adapters: those in use stacked on the device, the others in host memory. `lane.py` is the pure part of
continuous batching: rows that join, decode a few tokens and leave, each with an adapter of its own. `engine.py` deals
requests out to lanes, `batches.py` is its beam search and its scoring. Nothing is compiled again when adapters change.
`service.py` puts a hypermodel and an engine at the service of many callers, within `bounds.py`; `maker.py` makes their
adapters, `store.py` keeps them on disk and `listing.py` knows which there are; `http.py` is what callers talk to, with
its `messages.py`, `streams.py`, `middleware.py` and `page.py`.

    engine = Engine(model.model, model.base_params, spec)
    engine.add("dates", adapter.tree, adapter.spec)
    request = engine.submit(tokens, "dates")
    engine.run()
    request.tokens
"""
