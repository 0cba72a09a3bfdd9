"""Files and the hub.

files        files that appear whole or not at all, and their checksums
disk         space that is asked for before it is used, and named when it has run out
lock         one process at a time
hub          names on the Hugging Face hub, pinned or not, and the commits that they stand for
hub_files    their files, from the local cache where it has them
hub_answers  how long the hub is waited for, and what its answers mean
"""
