"""One trainer; phases are data."""
