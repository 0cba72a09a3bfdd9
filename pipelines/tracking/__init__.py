"""MLflow.

store        the store: opened, made where there is none, and asked for the files of a model
store_uri    which store, and how to speak of it without its password
run          one MLflow run per stage: params, data sets, models, figures
metric_log   curves, on disk at once and in MLflow a little later
data_source  where a corpus comes from, as MLflow writes it down
lineage      from a model back to its data, read from MLflow
view         the comparison of ratios as a saved view of the MLflow UI
"""
