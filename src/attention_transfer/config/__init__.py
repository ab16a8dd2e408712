"""Typed configurations of the verbs, recipes, and the words that they are made of. Nothing here loads torch."""
