"""Floor 2: how good is the file?"""
