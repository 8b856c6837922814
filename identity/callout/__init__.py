"""Mapping by a program of the site's: started for each person, confined, and ended with all its children.

It runs in the mapper and in `mep map`; the program runs as their account. It trusts the path of the program, which is
checked at each start, and nothing in the program's output. Only `identity` may import it.
"""
