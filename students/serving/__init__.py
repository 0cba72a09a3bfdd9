"""Serving over HTTP. Imports neither torch nor transformers: an exported student needs none of them.

limits    how much a request may ask for
schema    what a request may hold, and errors in OpenAI's shape
hosts     which hosts a request may name
batching  concurrent requests in common batches, in one worker thread
metrics   what /metrics shows
app       the routes
server    the process: listen, load, stop gracefully
page.html the page at the root
"""
