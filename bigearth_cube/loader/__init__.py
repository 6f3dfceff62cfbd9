"""From a selection to batches: plan (which rows), blocks (their bytes), batches."""
