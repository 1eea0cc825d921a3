"""A trained model behind HTTP: the server and the web page of `setr serve` (extra `serve`).

`server` listens, `gate` guards the door, `app` has the routes, `bodies` reads requests, `batching`
gathers images of one size from several requests, `models` computes, `answers` encodes; `limits` and
`regions` bound what all that may cost.
"""
