"""Mapping by a program of the site's: started for each person, confined, and ended with all its children."""
