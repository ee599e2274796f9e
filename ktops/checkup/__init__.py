"""`ktops doctor` without its front: what is asked, how it is shown, mended and summed up.

Nothing here needs more than Python's standard library, so that it runs where everything else that
ktops needs is missing or broken.
"""
