"""`dnd accept`: verifies and measures on a GPU all that no machine without one can say, in parts of a few minutes.

A part is a function that yields rows; a row that is not what it should be, or a part that fails, makes the command end
with 1. With `--tiny` everything runs at small sizes on whatever device is there: it shows that the parts work.
"""
