"""The sides of the comparisons: Malmoi and its peers, each a process that takes steps when told to."""
