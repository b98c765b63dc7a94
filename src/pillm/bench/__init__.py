"""Floor 2: how fast is the file?"""
