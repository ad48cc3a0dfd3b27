"""Evaluate models: perplexity, diversity, memorization, few-shot tasks, human evaluation."""
