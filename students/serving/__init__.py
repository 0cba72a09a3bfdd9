"""Serve exported students over HTTP. Imports neither torch nor transformers.

limits       the limits of requests and batches
schema       the parameters of a request, and errors in OpenAI's format
responses    completions and stream events in OpenAI's format
hosts        the check of the Host header
answers      the text of an answer while its tokens are generated, and stop sequences
batching     batches of concurrent requests, computed in one worker thread
inputs       the text of a request that gives the columns of a task
models       the models of a server, and how they are loaded
metrics      the metrics of /metrics
completions  the handling of a completion request, streamed or not
app          the routes
server       the server process: listen, load, stop gracefully
page.html    the page at the root
"""
