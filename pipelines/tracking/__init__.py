"""MLflow.

store        the store: create it, open it, and get the files of a model from it
store_uri    the URI of the store, and its name in messages, without credentials
tracked_run  one MLflow run per stage: params, data sets, models, metrics
metric_log   curves: written to disk at once, sent to MLflow a little later
data_source  the source of a corpus in MLflow's format
lineage      from a model back to its data, with the records in MLflow
environment  the versions of libraries and of this code
view         the comparison of ratios as a saved view of the MLflow UI
"""
