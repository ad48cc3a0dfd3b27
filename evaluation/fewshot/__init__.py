"""Few-shot tasks, from task files to scores."""
