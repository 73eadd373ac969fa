from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from freqformer.pages import Beside, Code, Picture, Section, Table, Text, picture_of, write_page

HOSTILE = "<script>alert(1)</script> \" ' & \udcff $x$"


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def read(tmp_path):
    def write(title, sections):
        path = tmp_path / "page.html"
        write_page(path, title, sections)
        reader = Reader()
        reader.feed(path.read_text("utf-8"))
        return reader

    return write


def test_whatever_a_page_is_told_is_text(read):
    parts = [Text(HOSTILE), Code(HOSTILE), Table([{HOSTILE: HOSTILE}]), Picture(b"", HOSTILE)]
    page = read(HOSTILE, [Section(HOSTILE, parts), Section(HOSTILE, parts, folded=True)])
    assert "script" not in page.tags
    # The title twice, and of each section its heading and what its parts say.
    assert sum("<script>alert(1)</script>" in words for words in page.words) == 2 + 2 * 6


def test_a_page_needs_nothing_beside_itself(read):
    figure = Figure()
    figure.subplots().plot([1, 2])
    page = read("run", [Section("curves", [picture_of(figure, "a line")])])
    assert len(page.links) == 1
    assert page.links[0].startswith("data:image/png;base64,iVBOR")
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_pictures_side_by_side_lie_in_the_page(read):
    page = read("runs", [Section("both", [Beside([Picture(b"\xff\xd8jpeg", HOSTILE), Picture(b"\x89PNG", "two")])])])
    assert [link.partition(";")[0] for link in page.links] == ["data:image/jpeg", "data:image/png"]
    assert "script" not in page.tags


def test_numbers_and_gaps_of_a_table_are_readable(read):
    words = read("run", [Section("scores", [Table([{"AP": 0.123456, "n": 7}, {"AP": None, "n": 10_000}])])]).words
    assert {"0.1235", "7", "–", "10000"} <= set(words)


def test_a_table_without_rows_is_left_out(read):
    assert "table" not in read("run", [Section("scores", [Table([])])]).tags
