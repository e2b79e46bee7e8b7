"""Where sentences end."""

import pytest

from jaxrec.data.sentences import sentence_ends


@pytest.mark.parametrize(
    "sentences",
    [
        [],
        ["   "],
        ["One."],
        ["One.", " Two!", " Three?"],
        ["He said “no.”", " (Why?)", " Nobody knows"],
        ["A title", "\nand a line", "\n\n- a point.  "],
        ["Dr. No met J. Smith, e.g. in Fig. 3, at 3.5 km.", " Then 4 came..."],
        ["It ended etc. and went on.", " 5 more"],
        ["今日は。", "明日は？", "はい"],
        ["Bu böyle. öyle olmaz.", " Şimdi olur."],
        ["  a", "\r\nb\r\n "],
    ],
)
def test_sentences_make_up_the_text(sentences):
    text = "".join(sentences)
    ends = sentence_ends(text)
    assert [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)] == sentences
