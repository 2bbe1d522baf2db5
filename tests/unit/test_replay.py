"""The replay's own arithmetic: which events a change of price makes, and when a mismatch is the data's."""

from app.domain.events import Event, decode_event
from app.replay.playing import OTHER_PRICE, SEVERAL_PRICES, Tally, compare, events_of
from app.replay.service import encode
from app.replay.year import Price, Purchase, Year


def events(was: Price, price: Price) -> list[Event]:
    """As the service reads them."""
    return [decode_event(encode(event)) for event in events_of("run:2", was, price)]


def test_a_new_list_price_and_a_new_loyalty_price_are_two_events_about_one_row() -> None:
    listed, loyalty = events(Price(7, 330, 399, 399), Price(7, 330, 449, 350))
    assert (listed.subject, listed.location, str(listed.data["amount"])) == ("7", "330", "4.49")
    assert loyalty.data["promotion"]["promotion_id"] == "loyalty:7:330"
    assert str(loyalty.data["promotion"]["value"]) == "3.5"
    assert listed.id != loyalty.id


def test_a_loyalty_price_that_ended_is_removed() -> None:
    (removed,) = events(Price(7, 330, 399, 350), Price(7, 330, 399, 399))
    assert removed.data == {"removed": "loyalty:7:330"}


def test_a_mismatch_is_the_datas_only_where_the_week_had_several_prices() -> None:
    tally = Tally()
    compare(tally, 1, Purchase(7, 330, 1, paid=350, price=399, several=True), quoted=350)
    compare(tally, 1, Purchase(7, 330, 1, paid=350, price=399, several=True), quoted=399)
    compare(tally, 1, Purchase(7, 330, 1, paid=350, price=399, several=True), quoted=380)
    compare(tally, 1, Purchase(7, 330, 1, paid=399, price=399, several=False), quoted=400)
    assert (tally.purchases, tally.exact, tally.possible) == (4, 1, 1)
    assert tally.mismatches == {SEVERAL_PRICES: 1, OTHER_PRICE: 2}
    assert len(tally.defects) == 2


def test_a_replay_that_starts_later_starts_from_the_last_known_prices() -> None:
    year = Year()
    stood = {(price.product, price.store): price for price in year.standing(3, 3)}
    for was, price in year.changes(2):
        assert stood[price.product, price.store] == price
        assert was != price
    for was, price in year.changes(3):
        assert stood[price.product, price.store] == was


def test_the_data_itself_allows_what_is_asked_of_the_year() -> None:
    year = Year()
    bought = [purchase for week in range(1, 54) for purchase in year.purchases(week)]
    assert len(bought) == 1_440_008
    assert round(sum(purchase.paid == purchase.price for purchase in bought) / len(bought), 3) == 0.978
    assert all(purchase.several for purchase in bought if purchase.paid != purchase.price)
