"""The typer application: the only code that prints."""
