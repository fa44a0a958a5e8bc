"""Traces of real engines read back as schedules: what was sent, when, and was it what should be."""
