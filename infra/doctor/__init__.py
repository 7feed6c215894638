"""`dnd doctor`: one line for each thing that must be right here, `ok` or what to do about it."""
