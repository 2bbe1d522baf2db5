"""What PostgreSQL's errors mean, and how long anybody waits for whom."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from app.adapters.database import make_engine, run, write_rows
from app.adapters.store import Store, Transaction
from app.errors import Unavailable
from tests.support.proxy import Proxy, proxy_to


def lock_row(store: Store, first: str, second: str, turn: threading.Barrier) -> None:
    with store.transaction() as tx:
        tx.events.check_fence(first, 1)
        turn.wait()
        tx.events.check_fence(second, 1)


def test_a_deadlock_is_tried_again_and_is_no_outage(store: Store) -> None:
    errors: list[Unavailable] = []
    turn = threading.Barrier(2)

    def work(first: str, second: str) -> None:
        try:
            lock_row(store, first, second, turn)
        except Unavailable as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (error,) = errors
    assert (error.upstream, "deadlock" in str(error)) == (None, True)


def hang(hanging: Store, others: Store) -> None:
    with hanging.transaction() as tx:
        tx.events.check_fence("a", 1)
        with others.transaction() as other:
            other.events.check_fence("a", 2)  # waits until the hanging one has been ended
        tx.events.ask_claim(["late"])()


def test_a_transaction_whose_process_hangs_is_ended_and_others_get_its_rows(database_url: str) -> None:
    """The next holder of the scope's lock waits for the fence that the hanging one has written."""
    hanging, others = Store(make_engine(database_url, idle_s=0.3)), Store(make_engine(database_url, answer_s=5))
    with pytest.raises(Unavailable) as raised:
        hang(hanging, others)
    assert raised.value.upstream == "postgresql"
    with hanging.transaction() as tx:
        assert not tx.events.processed("late"), "and it has a new connection"
    hanging.close()
    others.close()


def test_nobody_notices_that_the_server_has_ended_idle_connections(database_url: str) -> None:
    store = Store(make_engine(database_url, pool_size=2))
    with store.transaction() as one, store.transaction() as other:
        one.events.ask_claim(["a"])()
        ended = {_pid(one), _pid(other)}
    with psycopg.connect(database_url, autocommit=True) as connection:
        for pid in ended:
            # Waits up to 5 s until it has ended.
            assert connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)
    with store.transaction() as one, store.transaction() as other:
        assert ended.isdisjoint({_pid(one), _pid(other)})
        assert one.events.processed("a")
    store.close()


def test_what_fails_beside_others_leaves_the_connection_as_good_as_new(database_url: str) -> None:
    """Also those that psycopg would have prepared just then, and that the server never saw."""
    store = Store(make_engine(database_url, pool_size=1))

    def numbers(divisor: int) -> list[object]:
        with store.transaction() as tx:
            one = run(tx._connection, "SELECT 6 / %(divisor)s", {"divisor": divisor})
            other = run(tx._connection, "SELECT %(number)s::int4", {"number": 7})
            return [one.fetchone(), other.fetchone()]

    threshold = 5
    for healthy in range(threshold + 2):
        for _ in range(healthy):
            assert numbers(2) == [(3,), (7,)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            numbers(0)
    assert numbers(3) == [(2,), (7,)]
    store.close()


def test_a_transaction_whose_connection_was_lost_is_over(store: Store) -> None:
    """Where somebody passes over the error, what is done then is not done outside of it either."""

    def work() -> None:
        with store.transaction() as tx:
            tx.events.ask_claim(["before"])()
            with suppress(sa.exc.OperationalError):
                tx._connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
            tx.events.ask_claim(["after"])()

    with pytest.raises(Unavailable):
        work()
    with store.transaction() as tx:
        assert not tx.events.processed("before")
        assert not tx.events.processed("after")


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_what_was_not_read_is_undone_with_the_rest(store: Store, error: type[BaseException]) -> None:
    def work() -> None:
        with store.transaction() as tx:
            tx.events.ask_claim(["e"])
            raise error

    with pytest.raises(error):
        work()
    with store.transaction() as tx:
        assert not tx.events.processed("e")


def test_an_error_that_nobody_read_comes_with_the_commit(store: Store) -> None:
    def work() -> None:
        with store.transaction() as tx:
            tx.events.ask_claim(["e"])
            run(tx._connection, "SELECT 6 / %(divisor)s", {"divisor": 0})

    with pytest.raises(psycopg.errors.DivisionByZero):
        work()
    with store.transaction() as tx:
        assert not tx.events.processed("e")


def _pid(tx: Transaction) -> int:
    return int(tx._connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def test_a_server_that_only_reads_is_not_available(store: Store, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.execute("SELECT current_database()").fetchone()
        assert name is not None
        connection.execute(f"ALTER DATABASE {name[0]} SET default_transaction_read_only = on".encode())
    store.close()
    with pytest.raises(Unavailable) as raised, store.transaction() as tx:
        tx.events.check_fence("a", 1)
    assert raised.value.upstream == "postgresql"


def test_a_mistake_is_not_taken_for_an_outage(store: Store) -> None:
    with pytest.raises(sa.exc.ProgrammingError), store.transaction() as tx:
        tx._connection.execute(sa.text("SELECT nonsense"))


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    folder = parse_qs(urlsplit(database_url).query)["host"][0]
    with proxy_to(Path(folder) / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def doubtful(database_url: str, proxy: Proxy) -> Iterator[Store]:
    """Its way to PostgreSQL is the proxy; it doubts soon, and would wait for very long."""
    where = f"127.0.0.1:{proxy.port}{urlsplit(database_url).path}"
    url = f"postgresql://postgres@{where}?sslmode=disable&gssencmode=disable"
    store = Store(make_engine(url, answer_s=60, doubt_s=0.2))
    yield store
    store.close()


def break_off(proxy: Proxy) -> None:
    proxy.freeze()


def forget(proxy: Proxy) -> None:
    """New connections work, and those that are there are mute for ever."""
    proxy.freeze()
    proxy.heal()


@pytest.mark.parametrize("fails", [break_off, forget])
def test_a_half_open_connection_is_given_up_long_before_the_longest_statement(
    doubtful: Store, proxy: Proxy, fails: Callable[[Proxy], None]
) -> None:
    began = time.monotonic()

    def work() -> None:
        with doubtful.transaction() as tx:
            tx.events.check_fence("a", 1)
            fails(proxy)
            tx.events.check_fence("a", 2)

    with pytest.raises(Unavailable) as raised:
        work()
    assert time.monotonic() - began < 30, "much less than 60 s on any machine"
    assert raised.value.upstream == "postgresql"
    proxy.heal()
    with doubtful.transaction() as tx:
        tx.events.check_fence("a", 1)  # neither token was stored


def test_a_server_that_is_at_work_is_waited_for(database_url: str) -> None:
    """Also where it is we who have something to say: a COPY."""
    engine = make_engine(database_url, answer_s=60, doubt_s=0.1)
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_sleep(1)"))
        connection.execute(
            sa.text(
                "CREATE TEMPORARY TABLE slow (x int8);"
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$;"
                "CREATE TRIGGER dawdle BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION dawdle()"
            )
        )
        write_rows(connection, "slow", {"x": "int8"}, [(1,), (2,)])
        assert connection.execute(sa.text("SELECT count(*) FROM slow")).scalar_one() == 2
    engine.dispose()
