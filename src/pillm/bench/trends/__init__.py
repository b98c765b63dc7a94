"""`pillm bench report`: trends of the history as lines in a terminal and as one page."""
