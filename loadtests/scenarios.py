"""What can be played: which users, in which shape."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """`users` are classes of users.py, by name; `cold`: nothing is cached when it begins."""

    says: str
    users: tuple[str, ...]
    shape: str = "steady"
    cold: bool = False


SCENARIOS = {
    "steady": Scenario("prices by popularity, while two markets change some", ("Reader", "Market")),
    "flash-sale": Scenario(
        "nine of ten ask for one product, whose sale begins and ends", ("BargainHunter", "Sale"), "spike"
    ),
    "cold": Scenario("nothing is cached when everybody comes", ("Reader", "Market"), cold=True),
    "storm": Scenario("reads beside hundreds of events a second", ("Reader", "Market", "Storm")),
    "recalculation": Scenario(
        "every price is recalculated, again and again, at the peak too", ("Reader", "Market", "Recalculation"), "spike"
    ),
}
