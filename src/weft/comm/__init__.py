"""The one door for bytes between ranks."""
