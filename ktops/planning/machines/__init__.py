"""Machines to plan for: this one, those in the datasheets, and those a person describes."""
