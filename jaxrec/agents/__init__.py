"""Systems that orchestrate a text generator and tools."""
