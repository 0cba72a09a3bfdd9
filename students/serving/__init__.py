"""Serving over HTTP. Imports neither torch nor transformers: an exported student needs none of them.

limits       how much a request may ask for
schema       what a request may hold, and errors in OpenAI's shape
responses    what is answered, in OpenAI's shape
hosts        which hosts a request may name
answers      the text of an answer while its tokens come, and where it stops
batching     concurrent requests in common batches, in one worker thread
models       the models of a server, and how they load
metrics      what /metrics shows
completions  from the body of a request to its answer, whole or as a stream
app          the routes
server       the process: listen, load, stop gracefully
page.html    the page at the root
"""
