"""What the time model is calibrated with and scored by: measured rows, fits, the scoreboard."""
