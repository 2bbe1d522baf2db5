"""Price sheets as tests look at them."""

from msgspec.structs import replace

from app.domain.sheet import PriceSheet, SegmentPrices, Tier, decode_sheet


def spelled_out(payload: bytes) -> PriceSheet:
    """A sheet as it is kept, with every segment's prices in full, also where they are an amount alone."""
    sheet = decode_sheet(payload)
    return replace(sheet, everyone=_in_full(sheet.everyone), member=_in_full(sheet.member))


def _in_full(prices: SegmentPrices | int) -> SegmentPrices:
    return SegmentPrices(prices, (), (), (Tier(1, prices, prices),)) if isinstance(prices, int) else prices
