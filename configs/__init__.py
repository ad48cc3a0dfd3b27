"""What a run is: typed settings, presets in YAML, and the errors that bad settings raise."""
