"""Adaptation: models that are trained to be adapted to tasks which come later."""
