"""Files and the hub.

files        atomic writes, and checksums
disk         disk space: checks before writing, and errors of a full disk
memory       memory that this process can still use
lock         a lock between processes
units        numbered units of work that processes and machines share
hub          names on the Hugging Face hub, optionally pinned, and their commits
hub_files    files of models and data sets on the hub, from the local cache if it has them
hub_ranges   parts of files on the hub, by range requests, each byte once
hub_answers  requests to the hub with a time limit, and messages about its answers
"""
