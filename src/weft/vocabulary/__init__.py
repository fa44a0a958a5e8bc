"""The nouns of weft, free of torch: models, layouts, workloads, schedules."""
