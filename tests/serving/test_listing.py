"""Pages of a list are those of a plain sorted list, whatever came and went."""

from __future__ import annotations

import random

import pytest

from hyperflax.serving.listing import Listing


def test_pages_are_the_list() -> None:
    rng, listing, created = random.Random(0), Listing(), dict[str, int]()
    for _ in range(2000):
        key = f"{rng.randrange(300):03d}"
        made = rng.randrange(50) if rng.random() < 0.7 else None  # many are as old as each other
        listing.put(key, made)
        if made is None:
            created.pop(key, None)
        else:
            created[key] = made
    newest = sorted(created, key=lambda key: (created[key], key), reverse=True)
    assert len(listing) == len(newest) > 100
    assert {f"{key:03d}" for key in range(300) if f"{key:03d}" in listing} == created.keys()
    for limit in (1, 7, len(newest) - 1, len(newest), 1000):
        ids, after, pages = [], None, 0
        while after is not None or not pages:
            page = listing.page(limit, after)
            assert page.total == len(newest)
            ids, after, pages = ids + page.ids, page.next, pages + 1
        assert ids == newest
        assert pages == -(-len(newest) // limit)


def test_what_comes_meanwhile_moves_no_page() -> None:
    listing = Listing()
    for number in range(6):
        listing.put(str(number), number)
    first = listing.page(2)
    listing.put("new", 10)
    listing.put("4", None)  # the first page's last one but one is not asked for
    listing.put("1", None)
    assert (first.ids, first.next) == (["5", "4"], "4")
    with pytest.raises(KeyError):
        listing.page(2, after=first.next)
    assert listing.page(10, after="5") == (["3", "2", "0"], None, 5)
