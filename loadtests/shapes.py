"""How many users there are when: steady, ramp, spike or soak."""

SHAPES = {
    "steady": "all users from the beginning",
    "ramp": "ever more users, until all are there after four fifths of the time",
    "spike": "a fourth of the users, and all of them for the middle fifth of the time",
    "soak": "all users after a minute, for long",
}
SOAK_RISE_S = 60.0


def share_at(shape: str, elapsed_s: float, duration_s: float) -> float:
    """The share of the users that the shape has at a time, from 0 to 1."""
    through = elapsed_s / duration_s
    if shape == "ramp":
        return min(1.0, through / 0.8)
    if shape == "spike":
        return 1.0 if 0.4 <= through < 0.6 else 0.25
    if shape == "soak":
        return min(1.0, elapsed_s / min(SOAK_RISE_S, duration_s / 2))
    return 1.0
