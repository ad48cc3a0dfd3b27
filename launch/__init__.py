"""How runs start: the `malmoi` command, job scripts, the machine check, the report."""
