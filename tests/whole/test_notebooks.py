"""What a notebook shows of our objects, and what a line of text says of them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from tests.support.planning import costs_of
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.notebook.html import card, paragraph, preformatted, table


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.opened, self.closed, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)

    def handle_endtag(self, tag):
        self.closed.append(tag)

    def handle_data(self, data):
        self.text += data


def shown(thing):
    page = Tags(thing._repr_html_())
    assert sorted(tag for tag in page.opened if tag != "br") == sorted(page.closed)
    assert "script" not in page.opened
    assert len(repr(thing)) <= 120
    assert "\n" not in repr(thing)
    return page


def test_a_network_is_a_row_for_each_gate():
    page = shown(small_network())
    assert page.opened.count("tr") == 1 + 3
    for text in ("gate/0", "Sequential", "Linear", "63", "Stash"):
        assert text in page.text


def test_a_name_cannot_break_what_is_shown():
    gate = ak.Gate(nn.Linear(2, 2), None, name="<script>alert(1)</script>")
    page = shown(ak.Network([gate]))
    assert "<script>alert(1)</script>" in page.text


def test_a_session_is_its_sentinels_and_gates_as_they_were_last_heard_of():
    with ak.run(small_network()) as session:
        page = shown(session)
        assert "tr" not in page.opened, "nobody has been attached, and no gate was asked"
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=2, name="<i>t"))
        session.wait(WAIT_S)
        page = shown(session)
        assert "<i>t" in page.text
        assert "2 of 2 epochs" in page.text
        assert "i" not in page.opened
    page = shown(session)
    assert "ended" in page.text
    assert page.text.count("gate/") == 3
    assert "6" in page.text


def test_to_show_a_session_asks_nobody():
    engine = ak.Threads(1, timeline=True)
    with ak.run(small_network(), engine) as session:
        session._repr_html_()
        assert engine.timeline.spans == []


def test_a_session_of_replicas_is_shown_too():
    with ak.run(ak.Downpour(small_network(), replicas=2)) as session:
        session.attach(ak.Sentinel.train(batches_of(4), cross_entropy)).wait(WAIT_S)
    assert shown(session).text.count("shard/") == 3


def test_cells_of_a_table_are_text():
    page = Tags(table(("a\nb", "<b>"), [(1, None), ("&amp;", '"')], marked=[1]))
    assert page.opened.count("br") == 1
    assert "b" not in page.opened
    assert "&amp;" in page.text
    assert 'class="marked"' in table(("a",), [(1,)], [0])
    assert "marked" not in table(("a",), [(1,)])


def test_titles_and_paragraphs_are_text():
    page = Tags(card("<u>", paragraph("<s>"), preformatted("<q>\n")))
    assert {"u", "s", "q"}.isdisjoint(page.opened)
    assert preformatted("") == ""


@pytest.mark.parametrize("staleness_max", [4.0, -1.0])
def test_a_plan_is_a_row_for_each_layout(staleness_max):
    network, (x, _) = small_network(), batches_of(1)[0]
    machines, costs = ak.Machines.here(2), costs_of([0.01] * 3)
    plan = ak.plan(network, example=x, costs=costs, hosts=machines, staleness_max=staleness_max)
    page = shown(plan)
    assert page.opened.count("tr") == 1 + len(plan.layouts)
    assert ("marked" in plan._repr_html_().partition("</style>")[2]) == (staleness_max > 0)
