"""Schedules as they happen: from a recorded run, or from a dry run without any device."""
