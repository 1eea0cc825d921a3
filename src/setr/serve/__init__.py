"""A trained model behind HTTP: the server and the web page of `setr serve` (extra `serve`).

`server` listens, `gate` checks every request, `app` has the routes, `bodies` reads requests,
`batching` batches images of one size from several requests, `models` runs the models, `answers`
encodes results; `limits` and `regions` bound what a request may cost.
"""
