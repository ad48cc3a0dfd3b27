"""The parallel, resumable build from files to shards."""
