"""Who waits for a record is told once it is safe, in whatever company."""

import asyncio

from app.observability.receipts import Receipts


def test_all_up_to_a_number_are_told_and_the_others_wait_on() -> None:
    async def scene() -> None:
        receipts = Receipts()
        waiting = [asyncio.create_task(receipts.wait(number)) for number in range(1, 6)]
        await asyncio.sleep(0)
        assert receipts.wake.is_set()
        await asyncio.to_thread(receipts.give, 3)
        await asyncio.gather(*waiting[:3])
        assert [task.done() for task in waiting] == [True, True, True, False, False]
        await asyncio.to_thread(receipts.give, 5)
        await asyncio.gather(*waiting)

    asyncio.run(scene())


def test_one_who_has_gone_holds_up_nobody() -> None:
    async def scene() -> None:
        receipts = Receipts()
        gone, stays = (asyncio.create_task(receipts.wait(number)) for number in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.to_thread(receipts.give, 2)
        await stays
        assert gone.cancelled()

    asyncio.run(scene())


def test_where_nobody_waits_there_is_nobody_to_tell() -> None:
    Receipts().give(7)
