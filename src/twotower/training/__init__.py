"""The ways a model moves forward."""
