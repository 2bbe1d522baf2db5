"""Catalogue files: what can be read is read exactly, what cannot is named with its line and reason."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.catalog import completejourney, sample
from app.catalog.files import file_part, folder_parts, kind_of
from app.catalog.rows import Kind, parse
from app.domain.rules import PolicyKindName, PromotionKindName
from app.errors import InvalidInput

PRICES = "product_id,location,amount\n"


def read(path: Path, kind: Kind | None = None) -> tuple[dict[int, Any], dict[int, str]]:
    """Rows by line, and reasons by line."""
    part = file_part(path, kind)
    rows, refused = {}, {}
    for line, values in part.lines():
        try:
            if isinstance(values, InvalidInput):
                raise values
            rows[line] = parse(part.kind, values)
        except InvalidInput as error:
            refused[line] = str(error)
    return rows, refused


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_an_amount_in_csv_keeps_every_digit(tmp_path: Path) -> None:
    rows, _ = read(written(tmp_path, "list_prices.csv", PRICES + "A,NY,0.1000000000000000055511151231257827\n"))
    assert rows[2].amount == Decimal("0.1000000000000000055511151231257827")


def test_an_amount_in_json_never_becomes_a_float(tmp_path: Path) -> None:
    line = '{"product_id": "A", "location": "NY", "amount": 1234567.890123456789}\n'
    rows, _ = read(written(tmp_path, "list_prices.ndjson", line))
    assert rows[1].amount == Decimal("1234567.890123456789")


@pytest.mark.parametrize("width", [pl.Float64, pl.Float32])
def test_a_float_in_parquet_is_the_shortest_decimal_that_it_can_mean(tmp_path: Path, width: type[pl.DataType]) -> None:
    frame = pl.DataFrame({"product_id": [7, 8], "location": ["NY", "NY"], "amount": [3.99, 0.1]})
    path = tmp_path / "list_prices.parquet"
    frame.with_columns(pl.col("amount").cast(width)).write_parquet(path)
    rows, _ = read(path)
    assert {row.product_id: row.amount for row in rows.values()} == {"7": Decimal("3.99"), "8": Decimal("0.1")}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A,NY,-1", "amount: Input should be greater than or equal to 0"),
        ("A,NY,cheap", "amount: Input should be a valid decimal"),
        ("A,NY,", "amount: Field required"),
        ("A,NY", "has 2 values, not 3"),
        ('"A,NY,1.00', "is not CSV: unexpected end of data"),
        ("A B,NY,1.00", "product_id: String should match pattern"),
        ("A,NY,NaN", "amount: Input should be a finite number"),
        (b"\xff,NY,1.00", "is not UTF-8"),
    ],
)
def test_a_bad_line_of_csv_costs_only_itself(tmp_path: Path, line: str | bytes, reason: str) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path, "list_prices.csv", PRICES.encode() + b"A,LA,1.00\n" + bad + b"\n\nB,NY,2.00\r\n")
    rows, refused = read(path)
    assert list(rows) == [2, 5]
    assert list(refused) == [3]
    assert refused[3].startswith(reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"product_id": "A", "location": "NY"}', "amount: Field required"),
        ('{"product_id": "A", "location": "NY", "amount": 1, "colour": "red"}', "colour: Extra inputs"),
        ('{"product_id": "A", "location": "NY", "amount": true}', "amount: Decimal input should be"),
    ],
)
def test_a_bad_line_of_json_costs_only_itself(tmp_path: Path, line: str, reason: str) -> None:
    good = '{"product_id": "A", "location": "NY", "amount": "1.00"}\n'
    rows, refused = read(written(tmp_path, "list_prices.jsonl", good + line + "\n" + good))
    assert list(rows) == [1, 3]
    assert refused[2].startswith(reason)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("product_id,location", "the columns lack amount"),
        ("product_id,location,amount,colour", "the columns hold colour"),
        ("product_id,location,amount,amount", "the columns hold one name twice"),
        ("", "is empty"),
    ],
)
def test_a_file_with_other_columns_is_refused_before_anything_is_imported(
    tmp_path: Path, header: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        file_part(written(tmp_path, "list_prices.csv", header))


def test_the_first_byte_may_be_a_byte_order_mark(tmp_path: Path) -> None:
    rows, _ = read(written(tmp_path, "list_prices.csv", "\ufeff" + PRICES + "A,NY,1.00\n"))
    assert rows[2].product_id == "A"


def test_quantity_tiers_are_json_within_csv(tmp_path: Path) -> None:
    text = 'policy_id,name,kind,tiers\nlist,List,list,"[{""min_quantity"": 10, ""percent"": 2.5}]"\nx,X,list,[{\n'
    rows, refused = read(written(tmp_path, "policies.csv", text))
    assert rows[2].tiers[0].percent == Decimal("2.5")
    assert refused[3].startswith("tiers: ")


def test_the_kind_is_in_the_name_or_has_to_be_given(tmp_path: Path) -> None:
    assert kind_of(Path("List-Prices-2024.parquet")) is Kind.LIST_PRICES
    path = written(tmp_path, "north.csv", PRICES + "A,NY,1.00\n")
    with pytest.raises(InvalidInput, match="--kind"):
        file_part(path)
    assert file_part(path, Kind.LIST_PRICES).total == 1


def test_a_folder_is_imported_in_the_order_in_which_its_files_build_on_each_other(tmp_path: Path) -> None:
    written(tmp_path, "list_prices.csv", PRICES)
    written(tmp_path, "locations.csv", "location,name,currency,time_zone\n")
    written(tmp_path, "products.csv", "product_id,name\n")
    written(tmp_path, "README.md", "not a catalogue")
    assert [part.kind for part in folder_parts(tmp_path)] == [Kind.LOCATIONS, Kind.PRODUCTS, Kind.LIST_PRICES]


def test_the_sample_has_every_kind_of_policy_and_promotion() -> None:
    rows = {part.kind: [parse(part.kind, values) for _, values in part.lines()] for part in sample.parts()}  # type: ignore[arg-type]
    assert len(rows[Kind.PRODUCTS]) == 900
    assert len(rows[Kind.LIST_PRICES]) == 2700
    assert {policy.kind for policy in rows[Kind.POLICIES]} == set(PolicyKindName)  # type: ignore[union-attr]
    promotions = rows[Kind.PROMOTIONS]
    kinds = {(promotion.kind, promotion.segment.value) for promotion in promotions}  # type: ignore[union-attr]
    assert {kind for kind, _ in kinds} == set(PromotionKindName)
    assert {segment for _, segment in kinds} == {"everyone", "member"}
    assert {promotion.stackable for promotion in promotions} == {True, False}  # type: ignore[union-attr]


def test_the_grocers_year_has_the_prices_of_the_first_week_that_each_was_sold_in() -> None:
    totals = {part.kind: part.total for part in completejourney.parts()}
    assert totals[Kind.LOCATIONS] == 433
    assert totals[Kind.PRODUCTS] == 92_331 + 3  # three are only in the purchases
    assert totals[Kind.LIST_PRICES] == 626_882
