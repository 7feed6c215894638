"""`dnd view ROOT`: a page in the browser to walk through what a root holds, and a studio to draw with its model."""
